"""What a conversion refuses, by name; damaged files; and a directory that appears whole or not at all."""

import errno
import os
import random
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf_builder import float_tensors, metadata, stored_tensors, write_case, write_gguf

from nanovllm.checkpoint import gguf as conversion
from nanovllm.checkpoint.gguf import convert_gguf
from nanovllm.checkpoint.gguf_config import ModelReader
from nanovllm.checkpoint.gguf_file import GgufFile
from nanovllm.checkpoint.gguf_tokenizer import TokenizerReader
from nanovllm.checkpoint.writer import new_directory
from nanovllm.errors import CheckpointError, TokenizerError, UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sound_file(tmp_path_factory):
    return write_case(tmp_path_factory.mktemp("gguf") / "model.gguf", "llama-f32", "llama")


def convert(path, out_dir, **options):
    return convert_gguf(path, out_dir, progress=False, **options)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"general.architecture": "gemma3"}, CheckpointError, "'gemma3', expected one of llama, qwen2, qwen3"),
        ({"tokenizer.ggml.pre": "tekken2"}, TokenizerError, "'tokenizer.ggml.pre' is 'tekken2', expected one of"),
        ({"tokenizer.ggml.pre": None}, TokenizerError, "'tokenizer.ggml.pre' is absent"),
        ({"tokenizer.ggml.model": "bert"}, TokenizerError, "'tokenizer.ggml.model' is 'bert', expected gpt2 or llama"),
        ({"tokenizer.ggml.model": "t5"}, TokenizerError, "'t5'"),
        ({"tokenizer.ggml.eos_token_id": 500}, TokenizerError, "'tokenizer.ggml.eos_token_id' is 500"),
        ({"tokenizer.ggml.merges": ["Ġt", "a b"]}, TokenizerError, "'Ġt' as item 0"),
        ({"tokenizer.ggml.merges": ["nope nix"]}, TokenizerError, "the tokenizer cannot be built"),
        ({"tokenizer.ggml.token_type": [1, 1]}, TokenizerError, "token_type' has 2 items, expected 500"),
        ({"tokenizer.ggml.tokens": list("aba"), "tokenizer.ggml.token_type": [1] * 3}, TokenizerError, "'a' the ids"),
        ({"tokenizer.ggml.tokens": [1, 2]}, CheckpointError, "'tokenizer.ggml.tokens' is an array of 1"),
        ({"split.count": 3}, CheckpointError, "one of 3 parts"),
        ({"llama.expert_count": 8}, CheckpointError, "'llama.expert_count' is 8"),
        ({"llama.logit_scale": 0.5}, CheckpointError, "'llama.logit_scale' is 0.5"),
        ({"llama.rope.scaling.type": "longrope"}, CheckpointError, "'longrope', expected none, linear or yarn"),
        ({"llama.rope.scaling.attn_factor": 1.5}, CheckpointError, "'llama.rope.scaling.attn_factor' is 1.5"),
        ({"llama.rope.dimension_count": 8}, CheckpointError, "dimension_count' is 8, expected the head size 16"),
        ({"llama.attention.value_length": 8}, CheckpointError, "'llama.attention.value_length' is 8"),
        ({"llama.block_count": 3}, CheckpointError, "lacks tensor 'blk.2.attn_k.weight'"),
        ({"llama.block_count": 1}, CheckpointError, "holds tensor 'blk.1.attn_k.weight'"),
        ({"llama.block_count": 2**31 - 1}, CheckpointError, "there are only 21 tensors"),
        ({"llama.embedding_length": 0}, CheckpointError, "'llama.embedding_length' is 0, expected a positive integer"),
        ({"llama.embedding_length": None}, CheckpointError, "lacks 'llama.embedding_length'"),
        ({"llama.feed_forward_length": 175}, CheckpointError, "ffn_gate.weight' has shape (176, 64), expected (175"),
        ({"llama.attention.head_count_kv": [2, 1]}, CheckpointError, "'llama.attention.head_count_kv' is [2, 1]"),
        ({"llama.context_length": "long"}, CheckpointError, "'llama.context_length' is 'long', expected an integer"),
        ({"llama.rope.freq_base": float("nan")}, CheckpointError, "'llama.rope.freq_base' is nan"),
    ],
)  # fmt: skip
def test_metadata_is_refused_by_name(tmp_path, changes, error, words):
    path = write_gguf(
        tmp_path / "m.gguf", metadata("llama-f32", "llama") | changes, stored_tensors("llama-f32", "llama")
    )
    with pytest.raises(error) as caught:
        convert(path, tmp_path / "out")
    assert words in str(caught.value)
    assert "m.gguf" in str(caught.value)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["m.gguf"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"blk.0.attn_sinks.weight": np.ones(4, np.float32)}, "'blk.0.attn_sinks.weight', which architecture llama"),
        ({"blk.0.attn_q.bias": np.ones(64, np.float32)}, "lacks tensor 'blk.0.attn_k.bias'"),
        (
            {"output_norm.weight": (np.zeros((1, 18), np.uint8), "IQ4_NL")},
            "'output_norm.weight' as type IQ4_NL, expected",
        ),
        ({"rope_freqs.weight": np.array([1, 1.5, 1, 9, 1, 1, 1, 2], np.float32)}, "'rope_freqs.weight'"),
        ({"rope_freqs.weight": np.array([1, 1, 1, 1, 1, 1, 1, 0], np.float32)}, "'rope_freqs.weight'"),
        ({"rope_freqs.weight": np.ones(7, np.float32)}, "'rope_freqs.weight' has shape (7,), expected (8,)"),
        (
            {"output_norm.weight": np.full(64, np.nan, np.float32)},
            "'model.norm.weight' holds numbers that are not finite",
        ),
    ],
)
def test_tensors_are_refused_by_name(tmp_path, change, words):
    tensors = stored_tensors("llama-f32", "llama") | change
    path = write_gguf(tmp_path / "m.gguf", metadata("llama-f32", "llama"), tensors)
    with pytest.raises(CheckpointError) as caught:
        convert(path, tmp_path / "out")
    assert words in str(caught.value)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["m.gguf"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "expected b'GGUF'"),
        (b"PK\x03\x04 and so on", "begins with b'PK\\x03\\x04', expected b'GGUF'"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git-LFS pointer"),
        (b"GGUF", "ends inside the format version"),
        (b"GGUF" + struct.pack("<I", 1), "version 1, expected 2 or 3"),
        (b"GGUF" + struct.pack(">I", 3), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "ends inside a tensor name"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "ends inside a metadata key"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "ends inside a metadata key"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 2**60), "with 1,152,921,504,606,846,976 items"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 5, 2**20), "ends inside metadata value 'k'"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1), "'k' of type number 9"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77), "'k' of type number 77"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"\xff", 4), "not UTF-8"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + struct.pack("<Q1sIB", 1, b"k", 0, 5) * 2, "key 'k' twice"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 8, 0, 0), "tensor 't' ends at byte"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 2**63, 0, 0), "tensor 't' ends at byte"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"t", 9), "9 dimensions"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 8, 999, 0), "'t' as type number 999"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 33, 8, 0), "rows of a multiple of 32 for Q8_0"),
        (b"GGUF" + struct.pack("<IQQQ17sIIQ1sIQIQ", 3, 1, 1, 17, b"general.alignment", 4, 3, 1, b"t", 1, 8, 0, 0),
         "general.alignment 3, expected a power of two"),
    ],
)  # fmt: skip
def test_damaged_headers_give_one_sentence(tmp_path, data, words):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        convert(path, tmp_path / "out")
    assert words in str(caught.value)


def test_missing_and_special_files(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        convert(tmp_path / "none.gguf", tmp_path / "out")
    with pytest.raises(CheckpointError, match="not a regular file"):
        convert(tmp_path, tmp_path / "out")


def test_truncated_files_are_refused(tmp_path, sound_file):
    data = sound_file.read_bytes()
    path = tmp_path / "m.gguf"
    for size in [*range(0, 2000, 111), len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            convert(path, tmp_path / "out")


def test_flipped_bytes_never_escape_as_other_errors(tmp_path, sound_file):
    generator = random.Random(5)
    data = sound_file.read_bytes()
    header_bytes = len(data) - sum(values.nbytes for values in stored_tensors("llama-f32", "llama").values())
    path = tmp_path / "m.gguf"
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(generator.choice((1, 3, 20))):
            damaged[generator.randrange(header_bytes)] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            source = GgufFile(path)
            model = ModelReader(source)
            TokenizerReader(source, model.vocab_size).files(512)
        except UsageError:
            refused += 1
    assert refused > 30


def test_without_the_gguf_package_the_cure_is_named(tmp_path, sound_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r"pip install 'nanovllm\[gguf\]'"):
        convert(sound_file, tmp_path / "out")


def test_unknown_dtype_is_refused(tmp_path, sound_file):
    with pytest.raises(UsageError, match="'int8', expected one of auto, float32, float16, bfloat16"):
        convert(sound_file, tmp_path / "out", dtype="int8")


def test_finished_conversion_is_left_alone(tmp_path, sound_file, capsys):
    out_dir = convert(sound_file, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in out_dir.iterdir()}
    assert convert_gguf(sound_file, out_dir) == out_dir
    assert "nothing to do" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in out_dir.iterdir()} == before


def test_occupied_directories_are_refused(tmp_path, sound_file):
    other = write_case(tmp_path / "other.gguf", "qwen2-bf16-tied", "qwen2")
    out_dir = convert(sound_file, tmp_path / "out")
    with pytest.raises(UsageError, match="holds another conversion"):
        convert(other, out_dir)
    with pytest.raises(UsageError, match="holds another conversion"):
        convert(sound_file, out_dir, dtype="bfloat16")
    convert(other, out_dir, overwrite=True)
    assert '"qwen2"' in (out_dir / "config.json").read_text()
    (out_dir / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="lost files"):
        convert(other, out_dir)

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="not empty and was not written by a conversion"):
            convert(other, precious, overwrite=overwrite)
    assert (precious / "thesis.txt").read_text() == "years of work"
    with pytest.raises(UsageError, match="is a file"):
        convert(other, precious / "thesis.txt")
    assert {item.name for item in tmp_path.iterdir()} == {"out", "other.gguf", "precious"}


def test_empty_directory_and_missing_parents_are_fine(tmp_path, sound_file):
    (tmp_path / "empty").mkdir()
    assert (convert(sound_file, tmp_path / "empty") / "model.safetensors").is_file()
    assert (convert(sound_file, tmp_path / "a" / "b") / "model.safetensors").is_file()


def test_full_disk_leaves_nothing(tmp_path, sound_file, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(conversion, "write_weights", full)
    with pytest.raises(UsageError, match=r"the disk ran full while .*out was written"):
        convert(sound_file, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_refused_before_writing(tmp_path, sound_file, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UsageError, match=r"needs 0\.00 GB and its disk has 0\.00 GB free"):
        convert(sound_file, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_failed_replacement_keeps_the_old_directory(tmp_path, sound_file, monkeypatch):
    other = write_case(tmp_path / "other.gguf", "qwen2-bf16-tied", "qwen2")
    out_dir = convert(sound_file, tmp_path / "out")
    before = float_tensors(out_dir)
    real_rename = Path.rename

    def rename(self, target):
        if self.name == ".out.partial":
            raise OSError(errno.EIO, "I/O error")
        return real_rename(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UsageError, match="cannot be written: I/O error"):
        convert(other, out_dir, overwrite=True)
    assert {name: values.tobytes() for name, values in float_tensors(out_dir).items()} == {
        name: values.tobytes() for name, values in before.items()
    }
    assert {item.name for item in tmp_path.iterdir()} == {"out", "other.gguf"}


@pytest.mark.kill
def test_killed_conversion_leaves_no_directory_and_the_next_one_works(tmp_path, sound_file):
    program = (
        "import os, signal, sys\n"
        "from nanovllm.checkpoint import gguf, writer\n"
        "written = []\n"
        "def die(values, dtype, name, encode=writer.encode):\n"
        "    written.append(name)\n"
        "    if len(written) == 5:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return encode(values, dtype, name)\n"
        "writer.encode = die\n"
        "gguf.convert_gguf(sys.argv[1], sys.argv[2])\n"
    )
    out_dir = tmp_path / "out"
    ended = subprocess.run(
        [sys.executable, "-c", program, str(sound_file), str(out_dir)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert ended.returncode == -signal.SIGKILL
    assert not out_dir.exists()
    assert [item.name for item in tmp_path.iterdir()] == [".out.partial"]

    convert(sound_file, out_dir)
    assert [item.name for item in tmp_path.iterdir()] == ["out"]
    assert len(float_tensors(out_dir)) == 21


def test_two_conversions_to_one_directory_do_not_mix(tmp_path, sound_file):
    with new_directory(tmp_path / "out", needed_bytes=0) as stage:
        (stage / "file").write_text("mine")
        with pytest.raises(UsageError, match="another run is writing"):
            convert(sound_file, tmp_path / "out")
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["file"]
