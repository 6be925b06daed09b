"""Reading of safetensors files: views without a copy, and one sentence for each way a header can be wrong."""

import json
import mmap
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nanovllm.checkpoint.safetensors import SafetensorsFile, TensorInfo
from nanovllm.errors import CheckpointError

MODELS = Path(__file__).resolve().parents[1] / "golden/models"
LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def write(path, header, data=b"", header_bytes=None):
    """Write a file by hand; a str or bytes header goes in as it is."""
    if not isinstance(header, (str, bytes)):
        header = json.dumps(header)
    raw = header if isinstance(header, bytes) else header.encode()
    path.write_bytes(struct.pack("<Q", len(raw) if header_bytes is None else header_bytes) + raw + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)} | more


def resident_bytes(path):
    """How much of a mapped file is in this process's memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()
        if "-" in head[0] and not head[0].endswith(":"):
            inside = line.endswith(str(path))
        elif inside and head[0] == "Rss:":
            total += int(head[1]) * 1024
    return total


@pytest.mark.parametrize("case", ["llama-f32", "llama-f16-linear"])
def test_arrays_equal_what_the_safetensors_package_reads(case):
    path = MODELS / case / "model.safetensors"
    expected = load_file(path)
    with SafetensorsFile(path) as file:
        assert file.tensors.keys() == expected.keys()
        for name, array in expected.items():
            found = file.array(name)
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)


def test_bfloat16_is_shown_as_its_bits(tmp_path):
    path = write(tmp_path / "a.safetensors", {"w": entry("BF16", (2, 2))}, bytes.fromhex("803f00c0f7c20100"))
    found = SafetensorsFile(path).array("w")
    assert found.dtype == np.uint16
    assert found.tolist() == [[0x3F80, 0xC000], [0xC2F7, 0x0001]]


def test_header_fields_and_metadata(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "b": entry("F16", (1, 3), (8, 14)), "a": entry()}
    path = write(tmp_path / "a.safetensors", header, bytes(14))
    start = 8 + len(json.dumps(header))
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "pt"}
    assert file.tensors == {
        "a": TensorInfo("a", "F32", (2,), path, start, 8),
        "b": TensorInfo("b", "F16", (1, 3), path, start + 8, 6),
    }


def test_arrays_are_read_only_views_of_the_map_and_outlive_close(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, path)
    file = SafetensorsFile(path)
    array = file.array("w")
    assert not array.flags.owndata and not array.flags.writeable and array.flags.c_contiguous
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)
    file.close()
    file.close()
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="is closed"):
        file.array("w")


def test_release_takes_a_tensor_out_of_resident_memory_and_keeps_it_readable(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": np.ones(1 << 20, np.float32), "b": np.full(1 << 20, 2, np.float32)}, path)
    file = SafetensorsFile(path)
    a, b = file.array("a"), file.array("b")
    assert (a.sum(), b.sum()) == (1 << 20, 2 << 20)
    assert resident_bytes(path) >= 8 << 20
    file.release("a")
    assert (4 << 20) - 65536 <= resident_bytes(path) <= (4 << 20) + 65536
    file.release("b", 0, 2 << 20)
    assert resident_bytes(path) <= (2 << 20) + 65536
    assert (a.sum(), b.sum()) == (1 << 20, 2 << 20)


@pytest.mark.parametrize("metadata", [{}, {"__metadata__": None}, {"__metadata__": {}}])
def test_scalars_and_tensors_of_zero_bytes_and_no_tensors_are_accepted(tmp_path, metadata):
    empty = SafetensorsFile(write(tmp_path / "empty.safetensors", metadata))
    assert (empty.tensors, empty.metadata) == ({}, {})
    header = metadata | {
        "none": entry("F32", (0, 3), (0, 0)),
        "scalar": entry("F32", (), (0, 4)),
        "bits": entry("BF16", (), (4, 6)),
        "inner": entry("F16", (3, 0), (2, 2)),
        "last": entry("F32", (0,), (6, 6)),
    }
    file = SafetensorsFile(write(tmp_path / "a.safetensors", header, struct.pack("<fH", -1.5, 0x3F80)))
    assert file.array("none").shape == (0, 3)
    assert (file.array("inner").shape, file.array("last").shape) == ((3, 0), (0,))
    assert (file.array("scalar").shape, file.array("scalar")[()]) == ((), -1.5)
    assert file.array("bits")[()] == 0x3F80
    file.release("none")


def test_padding_around_the_header_and_bytes_of_no_tensor_are_tolerated(tmp_path):
    header = json.dumps({"w": entry(offsets=(4, 12))}) + "   "
    file = SafetensorsFile(write(tmp_path / "a.safetensors", header, struct.pack("<ffff", 9, 1, 2, 9)))
    assert file.array("w").tolist() == [1, 2]


def test_unknown_dtype_matters_only_when_its_tensor_is_read(tmp_path):
    header = {"new": entry("F2_E1M0", (64,), (0, 16)), "ids": entry("I64", (1,), (16, 24))}
    header["w"] = entry(offsets=(24, 32))
    file = SafetensorsFile(write(tmp_path / "a.safetensors", header, bytes(32)))
    assert file.array("w").tolist() == [0, 0]
    with pytest.raises(CheckpointError, match="tensor 'new' has dtype 'F2_E1M0', expected F32 or F16 or BF16"):
        file.array("new")
    with pytest.raises(CheckpointError, match="tensor 'ids' has dtype 'I64', expected F32 or F16 or BF16"):
        file.array("ids")
    with pytest.raises(CheckpointError, match="there is no tensor 'x'"):
        file.array("x")


def fails(path, *parts):
    """Opening the file is refused with one sentence that begins with its path and holds all parts."""
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    for part in parts:
        assert part in message, message


def test_git_lfs_pointer_is_recognised(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(LFS_POINTER)
    fails(path, "is a Git-LFS pointer, not the file itself", "git lfs pull")


@pytest.mark.parametrize("size", [0, 1, 7])
def test_file_too_short_for_a_length(tmp_path, size):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(size))
    fails(path, f"has {size} bytes, too few")


def test_directory_pipe_and_missing_file(tmp_path):
    fails(tmp_path, "is not a regular file")
    os.mkfifo(tmp_path / "pipe")
    fails(tmp_path / "pipe", "is not a regular file")
    fails(tmp_path / "none", "does not exist")


@pytest.mark.parametrize(
    ("length", "part"),
    [
        (2**64 - 1, "begins with a header length of 18,446,744,073,709,551,615 bytes"),
        (100_000_001, "begins with a header length of 100,000,001 bytes"),
        (1000, "is truncated: its header needs a file of at least 1,008 bytes, found 14"),
        (7, "is truncated: its header needs a file of at least 15 bytes, found 14"),
    ],
)
def test_absurd_header_length(tmp_path, length, part):
    fails(write(tmp_path / "a.safetensors", '{"a":1', header_bytes=length), part)


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("", "is not JSON: Expecting value at line 1, column 1"),
        ('{"a": ', "is not JSON: Expecting value at line 1, column 7"),
        (b"\xff\xfe{}", "is not UTF-8 text: byte 0"),
        ("[]", "holds an array, expected a JSON object"),
        ("null", "holds null, expected a JSON object"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"a":' * 100_000, "is nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "holds a number that cannot be read"),
        ('{"__metadata__": 3}', "__metadata__ in the header is a number, expected an object or null"),
        ('{"a": 1, "b": 2, "a": 3}', "the header gives 'a' twice"),
    ],
)
def test_header_that_is_not_a_json_object(tmp_path, header, part):
    fails(write(tmp_path / "a.safetensors", header), part)


@pytest.mark.parametrize(
    ("broken", "part"),
    [
        (None, "is described by null, expected an object"),
        ([1], "is described by an array, expected an object"),
        ({"shape": [2], "data_offsets": [0, 8]}, "lacks 'dtype' in the header"),
        ({"dtype": "F32", "data_offsets": [0, 8]}, "lacks 'shape' in the header"),
        ({"dtype": "F32", "shape": [2]}, "lacks 'data_offsets' in the header"),
        (entry(dtype=4), "'dtype' is a number, expected a string"),
        (entry() | {"shape": "2"}, "'shape' is a string, expected an array"),
        (entry() | {"data_offsets": {"begin": 0}}, "'data_offsets' is an object, expected an array"),
        (entry(shape=[-2]), "has shape [-2], expected"),
        (entry(shape=[2.0]), "has shape [2.0], expected"),
        (entry(shape=[True, 2]), "has shape [True, 2], expected"),
        (entry(shape=[None]), "has shape [None], expected"),
        (entry(shape=[2**63, 0]), f"has shape [{2**63}, 0], expected"),
        (entry(shape=[1] * 33), "expected at most 32 integers"),
        (entry(shape=[0, 2**62, 2**62], offsets=(0, 0)), "more elements than can be addressed"),
        (entry(shape=[2**62, 2**62]), "more elements than can be addressed"),
        (entry(shape=[2**61]), "more elements than can be addressed"),
        (entry(offsets=[0]), "has data_offsets [0], expected two integers"),
        (entry(offsets=[0, 4, 8]), "expected two integers"),
        (entry(offsets=[-8, 0]), "has data_offsets [-8, 0], expected two integers"),
        (entry(offsets=[8, 0]), "has data_offsets [8, 0], expected two integers"),
        (entry(offsets=[0.0, 8.0]), "expected two integers"),
        (entry(offsets=[False, 8]), "expected two integers"),
        (entry(offsets=[0, 2**64]), "expected two integers"),
        (entry(offsets=[0, 12]), "data_offsets [0, 12], 12 bytes, but 'F32' of shape [2] takes 8"),
        (entry("BF16", offsets=[0, 8]), "8 bytes, but 'BF16' of shape [2] takes 4"),
        (entry("F4", shape=[3], offsets=[0, 3]), "3 bytes, but 'F4' of shape [3] takes 2"),
    ],
)
def test_tensor_entry_that_is_wrong_by_itself(tmp_path, broken, part):
    path = write(tmp_path / "a.safetensors", {"good": entry(), "model.w": broken}, bytes(16))
    fails(path, "tensor 'model.w'", part)


def test_truncated_data_says_expected_and_found_sizes(tmp_path):
    whole = write(tmp_path / "a.safetensors", {"a": entry(), "b": entry(offsets=(8, 16))}, bytes(16))
    size = whole.stat().st_size
    whole.write_bytes(whole.read_bytes()[:-3])
    fails(whole, "is truncated", f"expected {size} bytes (the end of tensor 'b'), found {size - 3}")


def test_offset_far_outside_the_file(tmp_path):
    far = 2**62
    path = write(tmp_path / "a.safetensors", {"w": entry(offsets=(far, far + 8))}, bytes(8))
    fails(path, "is truncated or its header is damaged", "tensor 'w'")
    path = write(tmp_path / "b.safetensors", {"w": entry("F32", (0,), (far, far))}, bytes(8))
    fails(path, "is truncated or its header is damaged", "tensor 'w'")


@pytest.mark.parametrize("offsets", [(0, 8), (4, 12), (7, 15)])
def test_overlapping_tensors_are_named(tmp_path, offsets):
    path = write(tmp_path / "a.safetensors", {"a": entry(), "b": entry(offsets=offsets)}, bytes(16))
    fails(path, "tensors 'a' and 'b' overlap")


def test_names_that_no_terminal_can_print_are_quoted(tmp_path):
    path = write(tmp_path / "a.safetensors", '{"\\ud800\\n": 1}')
    fails(path, "tensor '\\ud800\\n' is described by a number")
