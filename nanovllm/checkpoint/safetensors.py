"""The safetensors file format: a checked header over a memory map, and views of its tensors without a copy.

Owns one file. It must not know of shards, models or which tensors are needed. The `safetensors` package is not used
for reading because its NumPy binding copies each tensor out of the map and has no bfloat16.

Layout: 8 bytes of header length (little-endian), the header (a JSON object from tensor name to dtype, shape and
data_offsets), then the data, to which the offsets are relative.
Source: https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanovllm.checkpoint.files import is_lfs_pointer, json_type, lfs_pointer_message, parse_json_object, quote
from nanovllm.errors import CheckpointError

#: Room for some 300,000 tensors. The format allows 100 MB, but that much hostile JSON takes over 1 GB once parsed.
MAX_HEADER_BYTES = 32 << 20

#: What NumPy 1 can hold; a shape with more dimensions is no weight.
MAX_DIMENSIONS = 32

#: Bits of one element. F4 and F6 are packed. A dtype that is not listed is accepted until its tensor is needed.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip

#: How `SafetensorsFile.array` shows the dtypes that weights may have. NumPy lacks bfloat16, so its bits are shown.
VIEW_DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor, checked against its file.

    Attributes:
        name: the tensor's name.
        dtype: the header's spelling, such as "BF16".
        shape: its dimensions; empty for a scalar.
        file: the file that holds it.
        offset: of its first byte in the file.
        nbytes: its size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


class SafetensorsFile:
    """One safetensors file, mapped read-only.

    Whatever the header claims is checked when the file is opened, before anything is allocated from it. Bytes that no
    tensor claims are tolerated, as is a null `__metadata__`. The file must not be shortened while it is open: the
    system answers an access beyond its end with SIGBUS.

    Attributes:
        path: the file.
        tensors: `TensorInfo` by name.
        metadata: the header's `__metadata__`, an empty dict if there is none.

    Raises:
        CheckpointError: the file cannot be read, is a Git-LFS pointer, is truncated, or its header is damaged.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._map = _map_file(self.path)
        try:
            self.tensors, self.metadata = _read_header(self.path, self._map)
        except BaseException:
            self._map.close()
            raise

    def array(self, name: str) -> np.ndarray:
        """View a tensor as a read-only array over the map, without a copy.

        Returns:
            Array of the tensor's shape, C-contiguous, read-only; float32, float16, or uint16 with the bits of bfloat16.
            It may be unaligned, since the format does not align data. It keeps the map alive after `close`.

        Raises:
            CheckpointError: there is no such tensor, or its dtype is none of F32, F16, BF16.
        """
        info = self._info(name)
        dtype = VIEW_DTYPES.get(info.dtype)
        if dtype is None:
            raise CheckpointError(
                f"{self.path}: tensor {quote(name)} has dtype {quote(info.dtype)}, expected {' or '.join(VIEW_DTYPES)}"
            )
        flat = np.frombuffer(self._open_map(), dtype=dtype, count=info.nbytes // dtype.itemsize, offset=info.offset)
        return flat.reshape(info.shape)

    def read_bytes(self, name: str, start: int, stop: int) -> bytes:
        """Copy the bytes `[start, stop)` of a tensor, counted from its first one."""
        info = self._info(name)
        return self._open_map()[info.offset + start : info.offset + min(stop, info.nbytes)]

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let the pages of a tensor leave the process's resident memory.

        Views stay valid: a later access reads the page again, usually from the system's file cache.

        Args:
            name: the tensor.
            start: first byte of the part to release, counted from the tensor's first byte.
            stop: end of the part; None for the tensor's end.
        """
        info = self._info(name)
        stop = info.nbytes if stop is None else min(stop, info.nbytes)
        if start >= stop:
            return
        # Rounded outwards: dropping a page that a neighbour shares costs that neighbour one page fault and no data.
        first = (info.offset + start) // mmap.PAGESIZE * mmap.PAGESIZE
        self._open_map().madvise(mmap.MADV_DONTNEED, first, info.offset + stop - first)

    def close(self) -> None:
        """Unmap the file, or leave that to the last view that still looks into it."""
        if self._map is None:
            return
        try:
            self._map.close()
        except BufferError:
            # Views still exist; the map goes when they do.
            pass
        self._map = None

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: there is no tensor {quote(name)}") from None

    def _open_map(self) -> mmap.mmap:
        if self._map is None:
            raise ValueError(f"{self.path} is closed")
        return self._map


def _map_file(path: Path) -> mmap.mmap:
    """Map a file read-only after checking that it can hold a header."""
    try:
        # A pipe would wait for its writer; a directory or device cannot be mapped.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} is not a regular file; expected a safetensors file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise CheckpointError(
                    f"{path} has {size} bytes, too few for a safetensors file; the download was cut off, get it again"
                )
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except OSError as cause:
        raise CheckpointError(f"{path} cannot be read: {cause.strerror or cause}") from cause


def _read_header(path: Path, data: mmap.mmap) -> tuple[dict[str, TensorInfo], dict]:
    """Parse and check the header of a mapped file."""
    if is_lfs_pointer(data[:64]):
        raise CheckpointError(lfs_pointer_message(path))
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} begins with a header length of {header_bytes:,} bytes, expected at most {MAX_HEADER_BYTES:,}; "
            "it is damaged or not a safetensors file, get it again"
        )
    if 8 + header_bytes > len(data):
        raise CheckpointError(
            f"{path} is truncated: its header needs a file of at least {8 + header_bytes:,} bytes, "
            f"found {len(data):,}; get it again"
        )
    header = parse_json_object(data[8 : 8 + header_bytes], where=f"header of {path}", pairs_hook=_no_duplicates(path))
    metadata = header.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        raise CheckpointError(
            f"{path}: __metadata__ in the header is {json_type(metadata)}, expected an object or null"
        )
    tensors = {name: _check_entry(path, name, entry, 8 + header_bytes) for name, entry in header.items()}
    _check_places(path, tensors, len(data))
    return tensors, metadata


def _no_duplicates(path: Path):
    def make_object(pairs: list) -> dict:
        result = dict(pairs)
        if len(result) != len(pairs):
            name, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise CheckpointError(f"{path}: the header gives {quote(name)} twice; the file is damaged, get it again")
        return result

    return make_object


def _check_entry(path: Path, name: str, entry, data_start: int) -> TensorInfo:
    """Check one header entry by itself: types, ranges, and that shape and size agree."""
    where = f"{path}: tensor {quote(name)}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where} is described by {json_type(entry)}, expected an object")
    for key, kind in (("dtype", str), ("shape", list), ("data_offsets", list)):
        if key not in entry:
            raise CheckpointError(f"{where} lacks {key!r} in the header; the file is damaged, get it again")
        if not isinstance(entry[key], kind):
            raise CheckpointError(f"{where}: {key!r} is {json_type(entry[key])}, expected {json_type(kind())}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if len(shape) > MAX_DIMENSIONS or not all(_is_size(size) for size in shape):
        raise CheckpointError(
            f"{where} has shape {quote(shape)}, expected at most {MAX_DIMENSIONS} integers from 0 to 2**63-1"
        )
    if len(offsets) != 2 or not all(_is_size(offset) for offset in offsets) or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{where} has data_offsets {quote(offsets)}, expected two integers [begin, end] with 0 <= begin <= end"
        )
    begin, end = offsets
    bits = DTYPE_BITS.get(dtype)
    if bits is not None:
        # NumPy multiplies the other dimensions even if one is 0, and refuses what overflows.
        if math.prod(size for size in shape if size) * bits >= 1 << 63:
            raise CheckpointError(f"{where} has shape {quote(shape)}, more elements than can be addressed")
        needed_bytes = (math.prod(shape) * bits + 7) // 8
        if end - begin != needed_bytes:
            raise CheckpointError(
                f"{where} has data_offsets {offsets}, {end - begin:,} bytes, but {quote(dtype)} of shape "
                f"{quote(shape)} takes {needed_bytes:,}; the file is damaged, get it again"
            )
    return TensorInfo(name, dtype, tuple(shape), path, data_start + begin, end - begin)


def _check_places(path: Path, tensors: dict[str, TensorInfo], file_bytes: int) -> None:
    """Check that every tensor lies inside the file and that no two share bytes."""
    needed_bytes = max((info.offset + info.nbytes for info in tensors.values()), default=0)
    if needed_bytes > file_bytes:
        outside = max(tensors.values(), key=lambda info: info.offset + info.nbytes)
        raise CheckpointError(
            f"{path} is truncated or its header is damaged: expected {needed_bytes:,} bytes (the end of tensor "
            f"{quote(outside.name)}), found {file_bytes:,}; get it again"
        )
    by_place = sorted((info for info in tensors.values() if info.nbytes), key=lambda info: info.offset)
    for before, after in itertools.pairwise(by_place):
        if after.offset < before.offset + before.nbytes:
            raise CheckpointError(
                f"{path}: tensors {quote(before.name)} and {quote(after.name)} overlap (bytes {before.offset:,} to "
                f"{before.offset + before.nbytes:,}, and from {after.offset:,}); the file is damaged, get it again"
            )


def _is_size(value) -> bool:
    # A bool is an int in Python; JSON's true is no size.
    return type(value) is int and 0 <= value < 1 << 63
