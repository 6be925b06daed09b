"""The GGUF file format: a checked header over a memory map, its metadata, and dequantized rows of its tensors.

Owns one file. It must not know architectures or tokenizers. Numbers are dequantized by the `gguf` package. The header
is read here, because whatever it claims has to be checked against the file's size first: the package's own reader takes
a damaged count at its word and loops until memory is gone.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from nanovllm.checkpoint.files import is_lfs_pointer, lfs_pointer_message, quote
from nanovllm.errors import CheckpointError, UsageError

#: The tensor types that can be read.
TENSOR_TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
)  # fmt: skip
FLOAT_TYPES = ("F32", "F16", "BF16")

#: Above any vocabulary or list of merges, and little enough that a hostile count costs no memory to speak of.
MAX_ARRAY_ITEMS = 4 << 20

_MAX_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
#: Scalar value types of the format, by number.
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "|b1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_REQUIRED = object()
_KIND_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false", list: "an array"}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file, its place checked.

    Attributes:
        name: in llama.cpp's spelling.
        type_name: "F32", "Q4_K" and so on.
        shape: in NumPy's order, outermost first.
        raw: [num_rows, bytes of a row] uint8, a read-only view of the map.
    """

    name: str
    type_name: str
    shape: tuple[int, ...]
    raw: np.ndarray

    def rows(self, which) -> np.ndarray:
        """Dequantize rows, picked by a slice or an index array, to float32 [num_picked, row length]."""
        import gguf

        # Damaged scales may overflow; the writer refuses what is not finite, by the tensor's name.
        with np.errstate(all="ignore"):
            values = gguf.dequantize(np.ascontiguousarray(self.raw[which]), gguf.GGMLQuantizationType[self.type_name])
        return np.asarray(values, dtype=np.float32)


class GgufFile:
    """A GGUF file, mapped read-only.

    Attributes:
        path: the file.
        metadata: values by key; arrays are lists, and float32 values are the shortest decimals that mean the same.
        tensors: `GgufTensor` by name.

    Raises:
        UsageError: the `gguf` package is not installed.
        CheckpointError: the file cannot be read, is truncated or damaged, or holds a tensor type that is not supported.
    """

    def __init__(self, path: str | os.PathLike):
        require_gguf()
        self.path = Path(path)
        self._map = _map_file(self.path)
        self.metadata, self.tensors = _HeaderReader(self.path, self._map).read()

    def get(self, key: str, kind: type, default=_REQUIRED):
        """Look up a metadata value and check its type; a missing one is an error unless there is a default."""
        if key not in self.metadata:
            if default is _REQUIRED:
                raise CheckpointError(f"{self.path}: the metadata lacks {key!r}; convert the model to GGUF again")
            return default
        value = self.metadata[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(f"{self.path}: {key!r} is {quote(value)}, expected {_KIND_NAMES[kind]}")
        return value

    def get_list(self, key: str, kind: type, default=_REQUIRED) -> list:
        """Look up an array and check the type of its items."""
        values = self.get(key, list, default)
        if values is default:
            return values
        # Items of one array share one type in the file.
        if values and type(values[0]) is not kind and not (kind is float and type(values[0]) is int):
            raise CheckpointError(
                f"{self.path}: {key!r} is an array of {quote(values[0])}…, expected {_KIND_NAMES[kind]} in it"
            )
        return values


def require_gguf() -> None:
    """Refuse at once, with the cure, where the optional `gguf` package is missing."""
    try:
        import gguf  # noqa: F401
    except ImportError as cause:
        raise UsageError(
            f"converting GGUF files needs the gguf package ({cause}); run: pip install 'nanovllm[gguf]'"
        ) from None


def _map_file(path: Path) -> mmap.mmap:
    try:
        # A pipe would wait for its writer; a directory or device cannot be mapped.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} is not a regular file; expected a GGUF file")
        with path.open("rb") as file:
            head = file.read(64)
            if is_lfs_pointer(head):
                raise CheckpointError(lfs_pointer_message(path))
            if head[:4] != b"GGUF":
                raise CheckpointError(f"{path} begins with {quote(head[:4])}, expected b'GGUF'; it is not a GGUF file")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; check the path") from None
    except OSError as cause:
        raise CheckpointError(f"{path} cannot be read: {cause.strerror or cause}") from cause


class _HeaderReader:
    """Reads the header front to back; every length is checked before it is used."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path = path
        self.data = data
        self.offset = 4  # after the magic

    def read(self) -> tuple[dict, dict[str, GgufTensor]]:
        version = self.number("<u4", "the format version")
        if version & 0xFFFF == 0:
            raise self.error(
                f"is a big-endian GGUF file (version field {version:#010x}); only little-endian ones are read"
            )
        if version not in (2, 3):
            raise self.error(f"is a GGUF file of version {version}, expected 2 or 3; convert the model to GGUF again")
        num_tensors = self.number("<u8", "the number of tensors")
        num_values = self.number("<u8", "the number of metadata values")
        metadata: dict = {}
        for _ in range(num_values):
            key = self.string("a metadata key")
            if key in metadata:
                raise self.error(f"gives the metadata key {quote(key)} twice; the file is damaged, get it again")
            metadata[key] = self.value(f"metadata value {quote(key)}")
        infos: dict = {}
        for _ in range(num_tensors):
            name, info = self.tensor_info()
            if name in infos:
                raise self.error(f"gives tensor {quote(name)} twice; the file is damaged, get it again")
            infos[name] = info
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self.error(f"has general.alignment {quote(alignment)}, expected a power of two")
        start = (self.offset + alignment - 1) // alignment * alignment
        return metadata, {name: self.tensor(name, start, *info) for name, info in infos.items()}

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {text}")

    def take(self, count: int, what: str) -> int:
        """Step over `count` bytes and return where they start."""
        start = self.offset
        if count > len(self.data) - start:
            raise self.error(
                f"ends inside {what}: {count:,} bytes from {start:,} on are needed, and it has {len(self.data):,}; "
                "it is truncated or damaged, get it again"
            )
        self.offset = start + count
        return start

    def number(self, dtype: str, what: str):
        kind = np.dtype(dtype)
        return np.frombuffer(self.data, kind, 1, self.take(kind.itemsize, what))[0].item()

    def string(self, what: str) -> str:
        # `number` is several times slower, and a vocabulary has hundreds of thousands of these.
        (count,) = struct.unpack_from("<Q", self.data, self.take(8, what))
        start = self.take(count, what)
        try:
            return self.data[start : start + count].decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(f"has {what} that is not UTF-8 text; the file is damaged, get it again") from None

    def value(self, what: str):
        kind = self.number("<u4", what)
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY:
            return self.scalars(kind, 1, what)[0]
        kind = self.number("<u4", what)
        count = self.number("<u8", what)
        if count > MAX_ARRAY_ITEMS:
            raise self.error(f"has {what} with {count:,} items, expected at most {MAX_ARRAY_ITEMS:,}; it is damaged")
        if kind == _STRING:
            return [self.string(what) for _ in range(count)]
        return self.scalars(kind, count, what)

    def scalars(self, kind: int, count: int, what: str) -> list:
        if kind not in _SCALARS:
            raise self.error(f"has {what} of type number {kind}, which GGUF does not define here; the file is damaged")
        dtype = np.dtype(_SCALARS[kind])
        values = np.frombuffer(self.data, dtype, count, self.take(count * dtype.itemsize, what))
        if dtype == np.float32:
            return [float(text) for text in values.astype(str)]
        return values.tolist()

    def tensor_info(self) -> tuple[str, tuple]:
        name = self.string("a tensor name")
        what = f"the description of tensor {quote(name)}"
        num_dims = self.number("<u4", what)
        if not 1 <= num_dims <= _MAX_DIMENSIONS:
            raise self.error(f"gives tensor {quote(name)} {num_dims} dimensions, expected 1 to {_MAX_DIMENSIONS}")
        dims = [self.number("<u8", what) for _ in range(num_dims)]
        return name, (tuple(reversed(dims)), self.number("<u4", what), self.number("<u8", what))

    def tensor(self, name: str, start: int, shape: tuple[int, ...], type_number: int, offset: int) -> GgufTensor:
        import gguf

        try:
            type_name = gguf.GGMLQuantizationType(type_number).name
        except ValueError:
            type_name = f"number {type_number}"
        if type_name not in TENSOR_TYPES:
            raise self.error(
                f"stores tensor {quote(name)} as type {type_name}, expected one of {', '.join(TENSOR_TYPES)}"
            )
        block_items, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(type_number)]
        if min(shape) < 1 or shape[-1] % block_items:
            raise self.error(
                f"gives tensor {quote(name)} the shape {shape}, expected positive sizes and rows of a multiple of "
                f"{block_items} for {type_name}"
            )
        num_rows, row_bytes = prod(shape[:-1]), shape[-1] // block_items * block_bytes
        begin, end = start + offset, start + offset + num_rows * row_bytes
        if end > len(self.data):
            raise self.error(
                f"is truncated: tensor {quote(name)} ends at byte {end:,}, and the file has {len(self.data):,}; "
                "get it again"
            )
        raw = np.frombuffer(self.data, np.uint8, end - begin, begin).reshape(num_rows, row_bytes)
        return GgufTensor(name, type_name, shape, raw)
