"""Checkpoint directories: which files are read, what is refused, what is widened, and what the identity covers."""

import json
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors import deserialize
from safetensors.numpy import save_file
from test_safetensors import resident_bytes

from nanovllm.checkpoint import loader
from nanovllm.checkpoint.files import read_json
from nanovllm.checkpoint.loader import Checkpoint, check_tensors, read_float32, read_parts
from nanovllm.errors import CheckpointError, ConfigError

MODELS = Path(__file__).resolve().parents[1] / "golden/models"
SHARDS = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]


@dataclass(frozen=True)
class Slot:
    name: str
    shape: tuple
    optional: bool = False


@pytest.fixture
def sharded(tmp_path):
    """A copy of a checkpoint of three shards, free to be damaged."""
    return Path(shutil.copytree(MODELS / "qwen3-sharded", tmp_path / "model"))


def edit_index(model_dir, change):
    path = model_dir / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def refused(model_dir, *parts):
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(model_dir)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


def save_raw(path, dtype, shape, data):
    save_bytes(path, {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}, data)


def save_bytes(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


# ---- files of the directory


def test_all_shards_are_read_by_their_index(sharded):
    expected = {name: tensor for shard in SHARDS for name, tensor in deserialize((sharded / shard).read_bytes())}
    with Checkpoint(sharded) as checkpoint:
        assert checkpoint.names.keys() == expected.keys()
        for name, tensor in expected.items():
            bits = np.frombuffer(tensor["data"], np.uint16).astype(np.uint32) << 16
            np.testing.assert_array_equal(
                read_float32(checkpoint, name), bits.view(np.float32).reshape(tensor["shape"])
            )


def test_each_missing_shard_and_the_index_are_named_before_any_file_is_opened(sharded, monkeypatch):
    (sharded / SHARDS[0]).unlink()
    (sharded / SHARDS[2]).unlink()
    monkeypatch.setattr(loader, "SafetensorsFile", lambda path: pytest.fail(f"opened {path}"))
    refused(sharded, "model.safetensors.index.json names 2 of 3 shards", f"{SHARDS[0]}, {SHARDS[2]};")


def test_damaged_shard_is_named(sharded):
    data = (sharded / SHARDS[1]).read_bytes()
    (sharded / SHARDS[1]).write_bytes(data[:-1])
    refused(sharded, sharded / SHARDS[1], "is truncated", f"{len(data):,}", f"{len(data) - 1:,}")


def test_shard_that_is_a_git_lfs_pointer_is_named(sharded):
    (sharded / SHARDS[1]).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(sharded, f"{sharded / SHARDS[1]} is a Git-LFS pointer", "git lfs pull")


def test_tensor_that_is_not_in_the_shard_the_index_names(sharded):
    edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": SHARDS[0]}))
    refused(sharded, "says that", SHARDS[0], "holds the tensor 'model.norm.weight', which is not there")


@pytest.mark.parametrize("shard", ["../model-00001-of-00003.safetensors", "/x.safetensors", "a/../../x.safetensors"])
def test_shard_outside_the_directory_is_refused(sharded, shard):
    shutil.copy(sharded / SHARDS[0], sharded.parent / SHARDS[0])
    edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": shard}))
    refused(sharded, "places the tensor 'model.norm.weight' in", repr(shard))


@pytest.mark.parametrize(
    "shard", ["", ".", None, 3, ["x"], "pytorch_model.bin", "a\0.safetensors", "\ud800.safetensors"]
)
def test_shard_that_is_no_safetensors_file_name_is_refused(sharded, shard):
    edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": shard}))
    refused(sharded, "model.safetensors.index.json", "places the tensor 'model.norm.weight' in")


def test_shard_whose_name_is_too_long_for_a_file_system_is_missing(sharded):
    edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": "x" * 5000 + ".safetensors"}))
    refused(sharded, "names 1 of 4 shards")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[]", "holds an array, expected a JSON object"),
        ("{}", "has no object 'weight_map'"),
        ('{"weight_map": null}', "has no object 'weight_map'"),
        ('{"weight_map": ["a"]}', "has no object 'weight_map'"),
        ('{"weight_map": {', "is not JSON: Expecting property name enclosed in double quotes at line 1, column 17"),
    ],
)
def test_index_of_the_wrong_form(sharded, text, part):
    (sharded / "model.safetensors.index.json").write_text(text)
    refused(sharded, sharded / "model.safetensors.index.json", part)


def test_tensor_that_the_index_forgets_is_found_unless_two_shards_hold_it(sharded):
    edit_index(sharded, lambda index: index["weight_map"].pop("model.norm.weight"))
    with Checkpoint(sharded) as checkpoint:
        assert "model.norm.weight" in checkpoint.names
    edit_index(sharded, lambda index: index["weight_map"].update({"extra": "z.safetensors"}))
    save_file(
        {"extra": np.zeros(1, np.float32), "model.norm.weight": np.zeros(3, np.float32)}, sharded / "z.safetensors"
    )
    refused(sharded, "both hold the tensor 'model.norm.weight'", sharded / "z.safetensors")


def test_shards_may_be_links_out_of_the_directory_as_in_the_hubs_cache(sharded):
    for shard in SHARDS:
        (sharded / shard).rename(sharded.parent / shard)
        (sharded / shard).symlink_to(Path("..") / shard)
    assert len(Checkpoint(sharded).names) == len(Checkpoint(MODELS / "qwen3-sharded").names)


def test_single_file_wins_over_an_index(sharded):
    save_file({"only": np.ones(1, np.float32)}, sharded / "model.safetensors")
    assert list(Checkpoint(sharded).names) == ["only"]


@pytest.mark.parametrize(
    ("present", "parts"),
    [
        ([], ["holds neither model.safetensors nor model.safetensors.index.json; get the weights"]),
        (["config.json"], ["holds neither model.safetensors nor model.safetensors.index.json; get the weights"]),
        (
            ["pytorch_model.bin", "config.json"],
            [
                "only pytorch_model.bin, which is not read because unpickling executes code",
                "get the safetensors version",
            ],
        ),
        (["consolidated.00.pth"], ["only consolidated.00.pth, which is not read because unpickling executes code"]),
        (["x-q8.gguf"], ["only x-q8.gguf; convert it first: nanovllm convert", "x-q8.gguf DIR"]),
        ([*SHARDS, "pytorch_model.bin"], ["only " + ", ".join(SHARDS), "add the missing index"]),
    ],
)
def test_directory_without_usable_weights_says_what_it_holds(tmp_path, present, parts):
    for name in present:
        (tmp_path / name).write_bytes(b"x")
    refused(tmp_path, tmp_path, *parts)


def test_path_that_is_no_directory(tmp_path):
    refused(tmp_path / "none", "none does not exist")
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "tiny.gguf", "is a GGUF file; convert it first: nanovllm convert", "tiny.gguf tiny")
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused(tmp_path / "model.safetensors", "is a file, expected the directory that holds config.json")
    refused("x" * 5000, "does not exist")


def test_dangling_link_to_the_weights_is_reported(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("gone")
    refused(tmp_path, f"{tmp_path / 'model.safetensors'} does not exist")


# ---- check_tensors


@pytest.fixture
def small(tmp_path):
    tensors = {
        "a": np.zeros((2, 3), np.float32),
        "b": np.zeros(4, np.float16),
        "ids": np.zeros(4, np.int64),
        "layers.0.rotary.inv_freq": np.zeros(2, np.float32),
        "extra": np.zeros((), np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return Checkpoint(tmp_path)


def test_fitting_slots_return_the_names_that_no_slot_asks_for(small):
    slots = [Slot("a", (2, 3)), Slot("b", (4,)), Slot("c", (9,), optional=True)]
    assert check_tensors(small, slots) == ["extra", "ids", "layers.0.rotary.inv_freq"]
    assert check_tensors(small, iter(slots), ignorable=("*.inv_freq", "ids")) == ["extra"]


def test_every_unfit_tensor_is_named_with_file_found_and_expected(small):
    slots = [Slot("a", (3, 2)), Slot("b", (4,)), Slot("ids", (4,)), Slot("c", (1,)), Slot("extra", (1,), optional=True)]
    with pytest.raises(CheckpointError) as caught:
        check_tensors(small, slots)
    assert str(caught.value) == (
        f"{small.model_dir}: the weights do not fit config.json: "
        "model.safetensors: tensor a has shape [2, 3], expected [3, 2]; "
        "model.safetensors: tensor ids has dtype 'I64', expected F32 or F16 or BF16; "
        "tensor c is missing; "
        "model.safetensors: tensor extra has shape [], expected [1]"
    )


def test_many_unfit_tensors_are_counted_not_all_spelled_out(small):
    with pytest.raises(CheckpointError, match=r"tensor t7 is missing; and 92 more$"):
        check_tensors(small, [Slot(f"t{number}", (1,)) for number in range(100)])


def test_missing_lm_head_names_the_key_and_two_cures(small):
    with pytest.raises(CheckpointError) as caught:
        check_tensors(small, [Slot("lm_head.weight", (2, 3))])
    assert (
        'tensor lm_head.weight is missing, and config.json says, or leaves to its default, "tie_word_embeddings": false'
        in str(caught.value)
    )
    assert "set it to true if the model shares its embedding, or get weights that hold the tensor" in str(caught.value)


# ---- read_float32


def widened(tmp_path, dtype, shape, data):
    save_raw(tmp_path / "model.safetensors", dtype, shape, data)
    with Checkpoint(tmp_path) as checkpoint:
        return read_float32(checkpoint, "w")


def test_bfloat16_is_widened_exactly(tmp_path):
    bits = [0x3F80, 0xC2F7, 0x0001, 0x8000, 0x7F80, 0xFF80, 0x7F7F]
    found = widened(tmp_path, "BF16", [7], struct.pack("<7H", *bits))
    assert found.dtype == np.float32
    assert found.tolist() == [1.0, -123.5, 2.0**-133, 0.0, np.inf, -np.inf, 255 * 2.0**120]
    assert np.signbit(found[3])
    assert np.isnan(widened(tmp_path, "BF16", [], struct.pack("<H", 0x7FC0)))


def test_float16_is_widened_exactly(tmp_path):
    bits = [0x3C00, 0xC580, 0x0001, 0x8000, 0x7C00, 0x7BFF, 0x7D01]
    found = widened(tmp_path, "F16", [7], struct.pack("<7H", *bits))
    assert found[:6].tolist() == [1.0, -5.5, 2.0**-24, 0.0, np.inf, 65504.0]
    assert np.signbit(found[3])
    assert np.isnan(found[6])  # a signalling NaN, without a warning


@pytest.mark.parametrize("chunk", [1, 5, 6, 7])
@pytest.mark.parametrize(("dtype", "code"), [("F32", "f"), ("F16", "e")])
def test_pieces_of_any_size_give_the_whole_tensor(tmp_path, monkeypatch, chunk, dtype, code):
    monkeypatch.setattr(loader, "CHUNK_ELEMENTS", chunk)
    found = widened(tmp_path, dtype, [2, 3], struct.pack(f"<6{code}", 0, 1, 2, 3, 4, 5))
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("multiple", "lengths"), [(1, [3, 3, 3, 1]), (2, [2, 2, 2, 2, 2]), (4, [4, 4, 2])])
def test_a_matrix_comes_in_parts_of_whole_rows(tmp_path, monkeypatch, multiple, lengths):
    monkeypatch.setattr(loader, "CHUNK_ELEMENTS", 7)
    save_raw(tmp_path / "model.safetensors", "F16", [10, 2], struct.pack("<20e", *range(20)))
    with Checkpoint(tmp_path) as checkpoint:
        parts = [part.copy() for part in read_parts(checkpoint, "w", multiple)]
    assert [len(part) for part in parts] == lengths
    assert np.concatenate(parts).tolist() == [[2 * i, 2 * i + 1] for i in range(10)]


def test_result_lands_in_out_which_must_fit(small):
    out = np.full((2, 3), 7, np.float32)
    assert read_float32(small, "a", out) is out
    assert not out.any()
    frozen = np.zeros((2, 3), np.float32)
    frozen.flags.writeable = False
    for wrong in (np.zeros((3, 2), np.float32), np.zeros((2, 3)), np.zeros((3, 2), np.float32).T, frozen):
        with pytest.raises(ValueError, match=r"out for 'a' is float.*expected writeable C-contiguous float32 \(2, 3\)"):
            read_float32(small, "a", wrong)


def test_what_has_no_float32_form_is_refused(small):
    with pytest.raises(CheckpointError, match="tensor 'ids' has dtype 'I64'"):
        read_float32(small, "ids")
    with pytest.raises(CheckpointError, match="no file of the checkpoint holds a tensor 'none'"):
        read_float32(small, "none")


def test_only_a_piece_of_a_large_tensor_is_resident_while_it_is_widened(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_raw(path, "F32", [10 << 20], b"\0" * (40 << 20))
    resident = []
    with Checkpoint(tmp_path) as checkpoint:
        release = checkpoint.release

        def spy(*args):
            resident.append(resident_bytes(path))
            release(*args)

        monkeypatch.setattr(checkpoint, "release", spy)
        read_float32(checkpoint, "w")
        assert len(resident) == 5
        assert 7 << 20 <= max(resident) <= 10 << 20
        assert resident_bytes(path) <= 1 << 20


# ---- identity


def test_identity_is_the_same_in_another_place_and_in_another_number_of_files(sharded, tmp_path):
    original = Checkpoint(MODELS / "qwen3-sharded")
    header, data = {}, b""
    for shard in SHARDS:
        for name, tensor in deserialize((sharded / shard).read_bytes()):
            offsets = [len(data), len(data) + len(tensor["data"])]
            header[name] = {"dtype": tensor["dtype"], "shape": tensor["shape"], "data_offsets": offsets}
            data += tensor["data"]
    (tmp_path / "merged").mkdir()
    save_bytes(tmp_path / "merged/model.safetensors", header, data)
    single = Checkpoint(tmp_path / "merged")
    for full in (False, True):
        assert original.identity(full) == Checkpoint(sharded).identity(full) == single.identity(full)
    assert original.identity() != original.identity(full=True)


def identities(path, tensors):
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    with Checkpoint(path) as checkpoint:
        return checkpoint.identity(), checkpoint.identity(full=True)


def test_identity_changes_with_names_shapes_dtypes_and_values(tmp_path):
    base = np.zeros((3, 100_000), np.float32)
    ends = []
    for flat in (0, 150_000, 299_999, 50_000):
        changed = base.copy()
        changed.flat[flat] = 1
        ends.append(changed)
    variants = [
        {"w": base},
        {"v": base},
        {"w": base.reshape(100_000, 3)},
        {"w": base.view(np.int32)},
        {"w": base, "x": np.zeros(0, np.float32)},
        *({"w": changed} for changed in ends),
    ]
    sampled, full = zip(
        *(identities(tmp_path / str(number), tensors) for number, tensors in enumerate(variants)), strict=True
    )
    assert len(set(full)) == len(variants)
    # The last variant differs only where no sample is taken.
    assert len(set(sampled)) == len(variants) - 1
    assert sampled[-1] == sampled[0]
    assert all(len(digest) == 64 for digest in sampled + full)


# ---- read_json


def test_json_file_is_returned_as_a_dict(tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "config.json").write_text('{"a": [1, "ä"], "b": "ä", "a": 2}', encoding=encoding)
        assert read_json(tmp_path / "config.json", what="model configuration") == {"a": 2, "b": "ä"}


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "is not JSON: Expecting value at line 1, column 1"),
        (b'{\n "a": 1,\n "b" 2}', "is not JSON: Expecting ':' delimiter at line 3, column 6"),
        (b'{"a": "\xff"}', "is not UTF-8 text: byte 7 cannot be decoded"),
        (b"[1]", "holds an array, expected a JSON object"),
        (b"false", "holds false, expected a JSON object"),
        (b"[" * 200_000, "is nested too deeply"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "holds a number that cannot be read"),
        (b'{"a": "' + b"x" * 100 + b'"}', None),
        (b'{"a": "' + b"x" * 20_000 + b'"}', "has 20,009 bytes, expected at most 20,000"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a Git-LFS pointer, not the file itself; run `git lfs pull`",
        ),
    ],
)
def test_json_file_that_cannot_be_used(tmp_path, data, part):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    limit = 20_000 if len(data) < 30_000 else 1 << 20
    if part is None:
        assert len(read_json(path, what="model configuration", max_bytes=limit)["a"]) == 100
        return
    with pytest.raises(ConfigError) as caught:
        read_json(path, what="model configuration", max_bytes=limit, error=ConfigError)
    assert str(caught.value).startswith(f"model configuration {path} ")
    assert part in str(caught.value)


def test_json_path_that_leads_to_no_file(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_json(tmp_path / "config.json", what="model configuration", error=ConfigError)
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read_json(tmp_path, what="model configuration")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read_json(tmp_path / "pipe", what="model configuration")
