"""A checkpoint directory in Hugging Face's layout: its tensors, whatever the number of files that hold them.

Owns the choice of files, the check that the tensors an architecture needs are there, and their widening to float32. It
must not know any architecture: callers bring the list of slots.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from nanovllm.checkpoint.files import kind_of, quote, read_json
from nanovllm.checkpoint.safetensors import VIEW_DTYPES, SafetensorsFile, TensorInfo
from nanovllm.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

#: What pickled weights are called; a pickle is a program, and reading it runs it.
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

#: Elements widened between two releases of mapped pages: 8 MiB of F32 at most, small beside any weight that matters.
CHUNK_ELEMENTS = 2 << 20

#: How many names a message spells out.
_MAX_NAMED = 8

_SAMPLE_BYTES = 4096

#: What to say besides "missing" of a tensor whose absence has a usual reason.
_MISSING_HINTS = {
    "lm_head.weight": (
        ', and config.json says, or leaves to its default, "tie_word_embeddings": false: set it to true if the model '
        "shares its embedding, or get weights that hold the tensor"
    )
}


class Slot(Protocol):
    """What `check_tensors` reads of a tensor that an architecture wants."""

    name: str
    shape: tuple[int, ...]
    optional: bool


class Checkpoint:
    """The weights of a model directory, mapped read-only.

    `model.safetensors` is used if it exists, even beside an index, as transformers does; otherwise the shards that
    `model.safetensors.index.json` names. Every file is opened and its header checked here, before any tensor is read.

    Attributes:
        model_dir: the directory.
        names: `TensorInfo` by tensor name.

    Raises:
        CheckpointError: there are no such weights, a shard is missing, or a file is damaged.
    """

    def __init__(self, model_dir: str | os.PathLike):
        self.model_dir = require_model_dir(model_dir)
        single, index = self.model_dir / WEIGHTS_FILE, self.model_dir / INDEX_FILE
        self._files: list[SafetensorsFile] = []
        self._home: dict[str, SafetensorsFile] = {}
        try:
            # lexists: a link whose target is gone is reported as such, not passed over.
            if os.path.lexists(single):
                file = self._open(single)
                self._home = dict.fromkeys(file.tensors, file)
            elif os.path.lexists(index):
                self._open_shards(index)
            else:
                raise CheckpointError(_no_weights_message(self.model_dir))
        except BaseException:
            self.close()
            raise
        self.names: dict[str, TensorInfo] = {name: file.tensors[name] for name, file in self._home.items()}

    def array(self, name: str) -> np.ndarray:
        """View a tensor without a copy; see `SafetensorsFile.array`."""
        return self._file(name).array(name)

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let the pages of a tensor leave resident memory; see `SafetensorsFile.release`."""
        self._file(name).release(name, start, stop)

    def close(self) -> None:
        """Unmap all files."""
        for file in self._files:
            file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def identity(self, full: bool = False) -> str:
        """Name the weights by a hash that does not depend on where or in how many files they are stored.

        Args:
            full: hash every byte, which reads the whole checkpoint. Otherwise each tensor counts with its name, dtype,
                shape and three samples of 4 KiB (start, middle, end): enough to tell fine-tunes and merged adapters
                apart, not to notice a few changed bytes elsewhere.

        Returns:
            64 hexadecimal digits (SHA-256). The two kinds never agree.
        """
        digest = hashlib.sha256(b"full" if full else b"sampled")
        for name in sorted(self.names):
            info = self.names[name]
            digest.update(repr((name, info.dtype, info.shape, info.nbytes)).encode("utf-8", "backslashreplace"))
            file = self._home[name]
            for start, stop in _whole(info.nbytes) if full else _samples(info.nbytes):
                digest.update(file.read_bytes(name, start, stop))
                file.release(name, start, stop)
        return digest.hexdigest()

    def _file(self, name: str) -> SafetensorsFile:
        try:
            return self._home[name]
        except KeyError:
            raise CheckpointError(f"{self.model_dir}: no file of the checkpoint holds a tensor {quote(name)}") from None

    def _open(self, path: Path) -> SafetensorsFile:
        file = SafetensorsFile(path)
        self._files.append(file)
        return file

    def _open_shards(self, index: Path) -> None:
        weight_map = _read_index(index)
        shards = {shard: self.model_dir / shard for shard in sorted(set(weight_map.values()))}
        missing = [shard for shard, path in shards.items() if kind_of(path) != "file"]
        if missing:
            raise CheckpointError(
                f"{index} names {len(missing)} of {len(shards)} shards that are not in the directory: "
                f"{', '.join(missing)}; get them again"
            )
        files = {shard: self._open(path) for shard, path in shards.items()}
        for name, shard in weight_map.items():
            if name not in files[shard].tensors:
                raise CheckpointError(
                    f"{index} says that {shards[shard]} holds the tensor {quote(name)}, which is not there; "
                    "the files are of different checkpoints or damaged, get them again"
                )
            self._home[name] = files[shard]
        for file in files.values():
            for name in sorted(file.tensors.keys() - weight_map.keys()):
                other = self._home.setdefault(name, file)
                if other is not file:
                    raise CheckpointError(
                        f"{file.path} and {other.path} both hold the tensor {quote(name)} and {index} does not say "
                        "which counts; get the files again"
                    )


def require_model_dir(path: str | os.PathLike) -> Path:
    """Return the path if it is a directory, or say what it is instead and what to do.

    Raises:
        CheckpointError: it is a file or does not exist.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "directory":
        return path
    if kind is None:
        raise CheckpointError(f"model directory {path} does not exist")
    if path.suffix.lower() == ".gguf":
        raise CheckpointError(f"{path} is a GGUF file; convert it first: nanovllm convert {path} {path.stem}")
    raise CheckpointError(f"{path} is a file, expected the directory that holds config.json and {WEIGHTS_FILE}")


def check_tensors(checkpoint: Checkpoint, slots: Iterable[Slot], *, ignorable: Collection[str] = ()) -> list[str]:
    """Check that a checkpoint holds every slot's tensor with the right shape and a dtype that can be read.

    Args:
        checkpoint: the checkpoint.
        slots: what the architecture wants; an optional slot may be absent, not wrong.
        ignorable: names, or shell patterns of names, that are never worth a warning.

    Returns:
        Names of the tensors that no slot asks for, sorted, for the caller to warn about.

    Raises:
        CheckpointError: lists every missing or unfit tensor: file, tensor, found, expected.
    """
    problems, wanted = [], set()
    for slot in slots:
        wanted.add(slot.name)
        problem = _slot_problem(checkpoint, slot)
        if problem:
            problems.append(problem)
    if problems:
        more = f"; and {len(problems) - _MAX_NAMED} more" if len(problems) > _MAX_NAMED else ""
        raise CheckpointError(
            f"{checkpoint.model_dir}: the weights do not fit config.json: {'; '.join(problems[:_MAX_NAMED])}{more}"
        )
    return sorted(
        name
        for name in checkpoint.names
        if name not in wanted and not any(fnmatchcase(name, pattern) for pattern in ignorable)
    )


def read_parts(checkpoint: Checkpoint, name: str, multiple: int) -> Iterator[np.ndarray]:
    """Yield a matrix [rows, columns] as float32 in parts of consecutive rows, a few megabytes each.

    Of each part but the last the number of rows is a multiple of `multiple`. A part is the caller's to overwrite; the
    mapped pages are given back.

    Raises:
        CheckpointError: there is no such tensor, or its dtype is none of F32, F16, BF16.
    """
    source = checkpoint.array(name)
    rows = max(1, CHUNK_ELEMENTS // source.shape[1] // multiple) * multiple
    for start in range(0, len(source), rows):
        part = source[start : start + rows]
        yield _widen(part, np.empty(part.shape, np.float32))
        checkpoint.release(name, start * source[0].nbytes, (start + len(part)) * source[0].nbytes)


def _widen(source: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Write float32, float16 or bfloat16 bits to out of the same shape, float32; return it."""
    if source.dtype == np.uint16:
        # bfloat16 is the upper half of float32.
        np.left_shift(source, 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        with np.errstate(invalid="ignore"):  # a signalling NaN is widened like any other
            out[...] = source
    return out


def read_float32(checkpoint: Checkpoint, name: str, out: np.ndarray | None = None) -> np.ndarray:
    """Widen a tensor to float32, exactly.

    Works through the tensor in pieces and gives back the mapped pages of each, so that besides the result only a few
    megabytes are resident.

    Args:
        checkpoint: the checkpoint.
        name: the tensor.
        out: array of the tensor's shape, float32, C-contiguous, written; None to allocate one.

    Returns:
        `out`.

    Raises:
        CheckpointError: there is no such tensor, or its dtype is none of F32, F16, BF16.
        ValueError: `out` is not such an array.
    """
    source = checkpoint.array(name)
    if out is None:
        out = np.empty(source.shape, dtype=np.float32)
    if out.dtype != np.float32 or out.shape != source.shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(
            f"out for {name!r} is {out.dtype} {out.shape}, expected writeable C-contiguous float32 {source.shape}"
        )
    # Of C-contiguous arrays reshape gives views, so pieces written to flat_out land in out.
    flat, flat_out = source.reshape(-1), out.reshape(-1)
    for start in range(0, flat.size, CHUNK_ELEMENTS):
        piece = flat[start : start + CHUNK_ELEMENTS]
        _widen(piece, flat_out[start : start + CHUNK_ELEMENTS])
        checkpoint.release(name, start * source.itemsize, (start + piece.size) * source.itemsize)
    return out


def _read_index(index: Path) -> dict[str, str]:
    """Read and check an index's `weight_map`: tensor name to a shard's file name inside the directory."""
    weight_map = read_json(index, what="index of the checkpoint").get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} has no object 'weight_map' that names the shard of each tensor; get it again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _stays_inside(shard):
            raise CheckpointError(
                f"{index} places the tensor {quote(name)} in {quote(shard)}, expected the name of a .safetensors file "
                "in the same directory"
            )
    return weight_map


def _stays_inside(shard: str) -> bool:
    # By name only: the files of the hub's cache are links that lead out of the directory, and are meant to.
    path = PurePosixPath(shard)
    return shard.isprintable() and path.suffix == ".safetensors" and not path.is_absolute() and ".." not in path.parts


def _slot_problem(checkpoint: Checkpoint, slot: Slot) -> str | None:
    info = checkpoint.names.get(slot.name)
    if info is None:
        return None if slot.optional else f"tensor {slot.name} is missing{_MISSING_HINTS.get(slot.name, '')}"
    if info.shape != tuple(slot.shape):
        return f"{info.file.name}: tensor {slot.name} has shape {list(info.shape)}, expected {list(slot.shape)}"
    if info.dtype not in VIEW_DTYPES:
        return (
            f"{info.file.name}: tensor {slot.name} has dtype {quote(info.dtype)}, expected {' or '.join(VIEW_DTYPES)}"
        )
    return None


def _no_weights_message(model_dir: Path) -> str:
    """Say what a directory without weights holds instead, and the cure."""
    try:
        names = sorted(entry.name for entry in os.scandir(model_dir) if not entry.is_dir())
    except OSError as cause:
        return f"{model_dir} cannot be read: {cause.strerror or cause}"
    expected = f"{model_dir} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}"
    shards = [name for name in names if name.endswith(".safetensors")]
    if shards:
        return f"{expected}, only {_listed(shards)}; add the missing index, or rename a single complete file"
    pickles = [name for name in names if name.endswith(_PICKLE_SUFFIXES)]
    if pickles:
        return (
            f"{expected}, only {_listed(pickles)}, which is not read because unpickling executes code from the file; "
            "get the safetensors version of this model, or save it again with transformers' save_pretrained"
        )
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if ggufs:
        return f"{expected}, only {_listed(ggufs)}; convert it first: nanovllm convert {model_dir / ggufs[0]} DIR"
    return f"{expected}; get the weights of the model, or name another directory"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_MAX_NAMED]) + (f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")


def _whole(nbytes: int) -> Iterable[tuple[int, int]]:
    step = 8 << 20
    return ((start, start + step) for start in range(0, nbytes, step))


def _samples(nbytes: int) -> list[tuple[int, int]]:
    if nbytes <= 3 * _SAMPLE_BYTES:
        return [(0, nbytes)]
    starts = (0, (nbytes - _SAMPLE_BYTES) // 2, nbytes - _SAMPLE_BYTES)
    return [(start, start + _SAMPLE_BYTES) for start in starts]
