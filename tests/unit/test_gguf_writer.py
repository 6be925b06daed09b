"""The safetensors files that conversions write: rounding, alignment, shapes."""

import json

import numpy as np
import pytest
from gguf_builder import raw_tensors

from nanovllm.checkpoint.writer import TensorSource, encode, write_weights
from nanovllm.errors import CheckpointError

#: float32 bits and the bfloat16 bits nearest to them; of two equally near ones the even one.
ROUNDING = [
    (0x3F800000, 0x3F80),  # exact
    (0x3F807FFF, 0x3F80),  # just under half
    (0x3F808000, 0x3F80),  # half, even below
    (0x3F808001, 0x3F81),  # just over half
    (0x3F818000, 0x3F82),  # half, even above
    (0xBF818000, 0xBF82),  # the same, negative
    (0x3FFFFFFF, 0x4000),  # carries into the exponent
    (0x80000000, 0x8000),  # negative zero
    (0x00000001, 0x0000),  # the smallest subnormal
]


@pytest.mark.parametrize(("bits", "expected"), ROUNDING)
def test_bfloat16_rounds_to_nearest_even(bits, expected):
    assert encode(np.array([bits], np.uint32).view(np.float32), "BF16", "t").tolist() == [expected]


def test_float16_rounds_to_nearest_even():
    # 2048 is where float16 starts to count by twos.
    assert encode(np.array([2049, 2051, 0.5], np.float32), "F16", "t").tolist() == [2048, 2052, 0.5]


@pytest.mark.parametrize(("value", "dtype"), [(3.4e38, "BF16"), (65520.0, "F16"), (-65520.0, "F16")])
def test_overflow_is_refused(value, dtype):
    with pytest.raises(CheckpointError, match=f"'t' holds numbers too large for {dtype}; convert with dtype float32"):
        encode(np.array([1.0, value], np.float32), dtype, "t")


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(CheckpointError, match="'t' holds numbers that are not finite"):
        encode(np.array([1.0, value], np.float32), "F32", "t")


@pytest.mark.parametrize("name_length", range(8))
def test_data_starts_at_a_multiple_of_eight(tmp_path, name_length):
    name = "n" * (name_length + 1)
    write_weights(tmp_path, [TensorSource(name, "F32", (2,), lambda: [np.array([1, 2], np.float32)])])
    data = (tmp_path / "model.safetensors").read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    assert header_bytes % 8 == 0
    assert json.loads(data[8 : 8 + header_bytes])[name]["data_offsets"] == [0, 8]
    assert data[8 + header_bytes :] == np.array([1, 2], "<f4").tobytes()


def test_wider_dtypes_come_first_so_that_all_are_aligned(tmp_path):
    values = np.array([1, 2, 3], np.float32)
    sources = [TensorSource(name, dtype, (3,), lambda: [values]) for name, dtype in (("a", "BF16"), ("b", "F32"))]
    write_weights(tmp_path, sources)
    data = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert (header["b"]["data_offsets"], header["a"]["data_offsets"]) == ([0, 12], [12, 18])
    assert raw_tensors(tmp_path)["a"] == ("BF16", (3,), bytes.fromhex("803f00404040"))


def test_large_models_are_split_with_an_index(tmp_path):
    data = {name: np.arange(count, dtype=np.float32) for name, count in (("a", 10), ("b", 25), ("c", 5), ("d", 1))}
    sources = [TensorSource(name, "F32", v.shape, lambda v=v: [v[:4], v[4:]]) for name, v in data.items()]
    write_weights(tmp_path, sources, max_shard_bytes=100)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 164}
    numbers = {"a": 1, "b": 2, "c": 3, "d": 3}
    assert index["weight_map"] == {name: f"model-0000{number}-of-00003.safetensors" for name, number in numbers.items()}
    assert raw_tensors(tmp_path) == {name: ("F32", values.shape, values.tobytes()) for name, values in data.items()}


def test_a_tensor_that_gives_too_little_is_refused(tmp_path):
    source = TensorSource("t", "F32", (3,), lambda: [np.zeros(2, np.float32)])
    with pytest.raises(CheckpointError, match=r"'t' gave 8 bytes, expected 12 for shape \(3,\)"):
        write_weights(tmp_path, [source])
