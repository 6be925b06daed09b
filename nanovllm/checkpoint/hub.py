"""What a user may call a model: a directory on disk, or the id of a repository on the Hugging Face hub.

Owns the decision between the two and the download. It never looks into a checkpoint, and it fetches only files that
cannot run code: JSON, Jinja (rendered in a sandbox) and safetensors.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NoReturn

from nanovllm.checkpoint.files import kind_of
from nanovllm.checkpoint.loader import require_model_dir
from nanovllm.errors import UsageError

ALLOW_PATTERNS = ["*.json", "*.jinja", "*.safetensors"]

#: Of no use here and large: other formats' folders, and Mistral's second copy of the weights in a layout of its own.
IGNORE_PATTERNS = ["*/*", "consolidated*.safetensors"]

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>.+))?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,199}")
_DEFAULT_ENDPOINT = "https://huggingface.co"


def resolve_model(model: str | os.PathLike, *, revision: str | None = None, relative_to: Path | None = None) -> Path:
    """Find the directory of a model, fetching it from the hub if it is named by a hub id.

    A directory wins over a hub id of the same name. A name whose parent directory exists is taken for a mistyped path
    and not looked up; `org/name@main` always means the hub.

    The download goes to the hub's own cache, with its progress bar; the variables that `huggingface_hub` documents
    (HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_CACHE, HF_TOKEN, ...) hold.

    Args:
        model: a directory, or `org/name` or `org/name@revision`.
        revision: branch, tag or commit, instead of `@revision`.
        relative_to: directory in which a relative path is looked up first; the current directory comes next.

    Returns:
        An existing directory; it may lack anything that a checkpoint needs.

    Raises:
        UsageError: there is no such directory and it cannot be fetched either; says why and what to do.
    """
    name = os.fspath(model)
    candidates = _local_candidates(name, relative_to)
    # An empty name would be the current directory.
    for path in candidates if name else ():
        if kind_of(path):
            return require_model_dir(path)
    match = None if isinstance(model, os.PathLike) else _HUB_ID.fullmatch(name)
    if match is None or not _is_repo_id(match["repo"]):
        raise UsageError(
            f"model {name!r} is not a directory (looked at {_listed(candidates)}), nor a hub id of the form org/name"
        )
    if match["revision"] is None and any(kind_of(path.parent) for path in candidates):
        raise UsageError(
            f"model {name!r} is not a directory (looked at {_listed(candidates)}); check the path, or write "
            f"{name}@main if you mean the model on the hub"
        )
    if revision and match["revision"] and revision != match["revision"]:
        raise UsageError(f"model {name!r} names revision {match['revision']}, but revision={revision!r} is given too")
    revision = revision or match["revision"]
    if revision and not (_REVISION.fullmatch(revision) and ".." not in revision):
        raise UsageError(f"model {match['repo']}: {revision!r} cannot be a revision; expected a branch, tag or commit")
    return _fetch(match["repo"], revision)


def _local_candidates(name: str, relative_to: Path | None) -> list[Path]:
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        # There is no such user's home.
        path = Path(name)
    if relative_to is None or path.is_absolute():
        return [path]
    return list(dict.fromkeys([Path(relative_to) / path, path]))


def _listed(paths: list[Path]) -> str:
    return " and ".join(str(path.absolute()) for path in paths)


def _is_repo_id(repo: str) -> bool:
    # The hub's rules that a pattern says badly.
    return "--" not in repo and ".." not in repo and not repo.endswith(".git")


def _fetch(repo: str, revision: str | None) -> Path:
    """Bring a repository's usable files into the hub's cache and return their directory there."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as cause:
        raise UsageError(
            f"model {repo!r} is a hub id, and fetching it needs another package: pip install huggingface_hub ({cause})"
        ) from cause
    offline = _is_offline()
    # The package reads its variables when it is imported; these two also hold if they were set later.
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    try:
        found = snapshot_download(
            repo,
            revision=revision,
            endpoint=endpoint,
            local_files_only=offline,
            allow_patterns=ALLOW_PATTERNS,
            ignore_patterns=IGNORE_PATTERNS,
        )
    except Exception as error:
        # Which exceptions a download raises depends on the package's version and on its HTTP client's.
        _raise_fetch_error(error, repo, revision, endpoint or _DEFAULT_ENDPOINT, offline)
    if not any(path.suffix == ".safetensors" for path in Path(found).iterdir()):
        raise UsageError(
            f"hub model {repo} has no safetensors weights; pickled ones are not read because unpickling executes code: "
            "choose a model with safetensors files, or fetch its GGUF file and run nanovllm convert"
        )
    return Path(found)


def _is_offline() -> bool:
    values = (os.environ.get("HF_HUB_OFFLINE"), os.environ.get("TRANSFORMERS_OFFLINE"))
    return any(value is not None and value.upper() in {"1", "ON", "YES", "TRUE"} for value in values)


def _raise_fetch_error(error: Exception, repo: str, revision: str | None, endpoint: str, offline: bool) -> NoReturn:
    """Turn whatever a download raised into one sentence with a cure."""
    # By name, since the classes have moved between modules and their bases have changed.
    chain = _causes(error)
    kinds = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    responses = (getattr(cause, "response", None) for cause in chain)
    status = next((response.status_code for response in responses if response is not None), None)
    what = f"hub model {repo}" + (f" at revision {revision}" if revision else "")
    if "GatedRepoError" in kinds:
        message = (
            f"{what} is gated: accept its conditions at {endpoint}/{repo}, then log in with `hf auth login` "
            "or set HF_TOKEN"
        )
    elif "RevisionNotFoundError" in kinds:
        message = (
            f"hub model {repo} has no revision {revision or 'main'}; its branches and tags are at {endpoint}/{repo}"
        )
    elif "RepositoryNotFoundError" in kinds or status == 404:
        message = (
            f"{what} was not found at {endpoint}, nor is it a directory: check the spelling; if it is private, log in "
            "with `hf auth login` or set HF_TOKEN"
        )
    elif status in (401, 403):
        message = f"{what}: {endpoint} refused access ({status}); log in with `hf auth login` or set a valid HF_TOKEN"
    elif offline or "OfflineModeIsEnabled" in kinds:
        message = (
            f"{what} is not complete in the local cache and HF_HUB_OFFLINE forbids the network: unset it, or fetch the "
            "model once while online"
        )
    else:
        message = (
            f"{what} could not be fetched from {endpoint} ({_reason(chain[-1])}): check the network, HF_ENDPOINT and "
            "the free disk space, or name a local directory"
        )
    raise UsageError(message) from error


def _causes(error: BaseException) -> list[BaseException]:
    """List an error and what it was raised from, down to the bottom."""
    chain = [error]
    while chain[-1].__cause__ is not None and chain[-1].__cause__ not in chain:
        chain.append(chain[-1].__cause__)
    return chain


def _reason(error: BaseException) -> str:
    """Describe an error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
