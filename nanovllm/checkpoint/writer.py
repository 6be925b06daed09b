"""Writing a checkpoint directory: safetensors files tensor by tensor, and a directory that appears whole or not at all.

Owns bytes on disk. It must not know where tensors come from or what they mean: callers hand float32 pieces. The
`safetensors` package is not used for writing because it wants all tensors in memory at once and its NumPy binding has
no bfloat16.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from nanovllm.errors import CheckpointError, UsageError

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

#: What the hub's own tools use; a file of this size still copies and downloads in one piece.
MAX_SHARD_BYTES = 5_000_000_000

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class TensorSource:
    """A tensor to write.

    Attributes:
        name: its name in the checkpoint.
        dtype: "F32", "F16" or "BF16", to which its numbers are rounded.
        shape: its dimensions.
        chunks: called once, gives float32 arrays that, flattened one after the other, are the tensor in row-major
            order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def encode(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Round float32 numbers to a checkpoint dtype, to nearest, ties to even.

    Args:
        values: float32, any shape.
        dtype: "F32", "F16" or "BF16".
        name: of the tensor, for messages.

    Returns:
        Flat little-endian array: float32, float16, or uint16 with the bits of bfloat16.

    Raises:
        CheckpointError: a number is not finite, or too large for the dtype.
    """
    values = np.ascontiguousarray(values, dtype="<f4").reshape(-1)
    if not np.isfinite(values).all():
        raise CheckpointError(f"tensor {name!r} holds numbers that are not finite; the file is damaged, get it again")
    if dtype == "F32":
        return values
    if dtype == "F16":
        with np.errstate(over="ignore"):
            rounded = values.astype("<f2")
        finite = np.isfinite(rounded).all()
    else:
        bits = values.view("<u4")
        # Half of the last kept unit, less one where the kept part is even: ties then go to the even neighbour.
        rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
        finite = ((rounded & 0x7F80) != 0x7F80).all()
    if not finite:
        raise CheckpointError(f"tensor {name!r} holds numbers too large for {dtype}; convert with dtype float32")
    return rounded


def write_weights(
    directory: Path,
    tensors: Sequence[TensorSource],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> dict[str, str]:
    """Write `model.safetensors`, or shards and their index when one file would be too large.

    Args:
        directory: where; it exists.
        tensors: in the order in which they are written.
        max_shard_bytes: data in one file, unless a single tensor is larger.
        on_bytes: told the size of each piece of a tensor when it is written.

    Returns:
        SHA-256 by file name.
    """
    shards = _split(tensors, max_shard_bytes)
    if len(shards) == 1:
        return {"model.safetensors": _write_file(directory / "model.safetensors", shards[0], on_bytes)}
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    sums = {name: _write_file(directory / name, shard, on_bytes) for name, shard in zip(names, shards, strict=True)}
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)},
        "weight_map": {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
    }
    text = json.dumps(index, indent=2) + "\n"
    sums["model.safetensors.index.json"] = write_text(directory / "model.safetensors.index.json", text)
    return sums


def write_text(path: Path, text: str) -> str:
    """Write a UTF-8 file through to the disk and return its SHA-256."""
    data = text.encode("utf-8")
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


@contextmanager
def new_directory(out_dir: str | os.PathLike, *, needed_bytes: int, replace: bool = False) -> Iterator[Path]:
    """Give a temporary directory that becomes `out_dir` when the block ends well, and vanishes when it does not.

    The temporary directory lies beside `out_dir`, hidden, so that the last step is one rename. What a killed run left
    there is removed by the next one; a lock keeps two living runs apart.

    Args:
        out_dir: must not exist, or be empty, unless `replace`.
        needed_bytes: what will be written; refused at once if the disk has less free.
        replace: an existing `out_dir` is moved aside and removed after the new one has taken its place.

    Raises:
        UsageError: no space, no permission, another run works on the same `out_dir`, or it is not empty.
    """
    out_dir = Path(out_dir).resolve()
    stage = out_dir.with_name(f".{out_dir.name}.partial")
    aside = out_dir.with_name(f".{out_dir.name}.old")
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock_stage(stage, out_dir)
        try:
            if aside.exists() and not out_dir.exists():
                # A run was killed between the two renames of a replacement.
                aside.rename(out_dir)
            free_bytes = shutil.disk_usage(out_dir.parent).free
            if needed_bytes > free_bytes:
                raise UsageError(
                    f"{out_dir} needs {_gigabytes(needed_bytes)} and its disk has {_gigabytes(free_bytes)} free; "
                    "free some space or choose another directory"
                )
            yield stage
            _sync_directory(stage)
            _publish(stage, out_dir, aside, replace)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
        finally:
            os.close(lock)
    except OSError as cause:
        if cause.errno in _NO_SPACE:
            raise UsageError(
                f"the disk ran full while {out_dir} was written ({_gigabytes(needed_bytes)} needed); what was written "
                "is removed again, free some space or choose another directory"
            ) from cause
        raise UsageError(f"{out_dir} cannot be written: {cause.strerror or cause}; choose another directory") from cause


def _lock_stage(stage: Path, out_dir: Path) -> int:
    """Create the temporary directory empty, locked by an open descriptor, which is returned."""
    while True:
        stage.mkdir(exist_ok=True)
        descriptor = os.open(stage, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The former holder may have renamed or removed the directory between our opening and locking it.
            if stage.exists() and stage.stat().st_ino == os.fstat(descriptor).st_ino:
                for left_over in stage.iterdir():
                    shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise UsageError(
                f"another run is writing {out_dir} right now; wait for it, or choose another directory"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _publish(stage: Path, out_dir: Path, aside: Path, replace: bool) -> None:
    if replace and out_dir.exists():
        if aside.exists():
            shutil.rmtree(aside)
        out_dir.rename(aside)
        try:
            stage.rename(out_dir)
        except BaseException:
            aside.rename(out_dir)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    else:
        # The system renames onto an empty directory, and refuses one that something was put into meanwhile.
        stage.rename(out_dir)
    _sync_directory(out_dir.parent)


def _split(tensors: Sequence[TensorSource], max_shard_bytes: int) -> list[list[TensorSource]]:
    shards: list[list[TensorSource]] = [[]]
    used_bytes = 0
    for tensor in tensors:
        if shards[-1] and used_bytes + tensor.nbytes > max_shard_bytes:
            shards.append([])
            used_bytes = 0
        shards[-1].append(tensor)
        used_bytes += tensor.nbytes
    # Wider dtypes first, so that every tensor starts at a multiple of its item size.
    return [sorted(shard, key=lambda tensor: -ITEM_BYTES[tensor.dtype]) for shard in shards]


def _write_file(path: Path, tensors: Sequence[TensorSource], on_bytes: Callable[[int], None]) -> str:
    header: dict = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    head = json.dumps(header, separators=(",", ":")).encode("utf-8")
    # Padded with spaces, which JSON ignores, so that the data is aligned for its widest dtype.
    head += b" " * (-len(head) % 8)
    head = len(head).to_bytes(8, "little") + head
    digest = hashlib.sha256(head)
    with path.open("wb") as file:
        file.write(head)
        for piece in _pieces(tensors):
            file.write(piece)
            digest.update(piece)
            on_bytes(len(piece))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _pieces(tensors: Sequence[TensorSource]) -> Iterator[memoryview]:
    for tensor in tensors:
        written_bytes = 0
        for chunk in tensor.chunks():
            piece = memoryview(encode(chunk, tensor.dtype, tensor.name)).cast("B")
            written_bytes += len(piece)
            yield piece
        if written_bytes != tensor.nbytes:
            # A header that promises other sizes than follow would shift every later tensor.
            raise CheckpointError(
                f"tensor {tensor.name!r} gave {written_bytes:,} bytes, expected {tensor.nbytes:,} for "
                f"shape {tensor.shape}"
            )


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
