"""The directory of a run: which files are ours, and when it may be used.

`results.jsonl` and `rows.jsonl` exist for a finished run, `journal.jsonl` for one that is at work or was broken off.
What the user put there is never touched.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from jobs.files import sync_folder
from jobs.journal import KIND as JOURNAL_KIND
from jobs.journal import JournalLost
from jobs.lock import RunLock
from jobs.results import reopen
from nanovllm import ConfigError

MANIFEST_KIND = "nanovllm-run"
"""Value of `kind` in every manifest of ours."""

# What a disk or a folder says when it takes no more; anything else is a bug of ours.
_UNWRITABLE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ENOENT", "EACCES", "EPERM", "ESTALE")
}

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LOGGERS = ("jobs", "nanovllm")


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.results = path / "results.jsonl"
        self.heads = path / "rows.jsonl"
        self.scores = path / "scores.json"
        self.journal = path / "journal.jsonl"
        self.manifest = path / "manifest.json"
        self.status = path / "status.json"
        self.log = path / "run.log"
        self.lock = path / "lock"

    def create(self) -> None:
        """Create the directory, or see that it can be written.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.log.open("ab").close()
        except OSError as error:
            raise unwritable(self.path, error) from None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out while it is entered.

        Raises:
            Locked: another live process is at work here.
            ConfigError: the lock cannot be written.
        """
        lock = RunLock(self.lock)
        try:
            lock.__enter__()
        except OSError as error:
            raise unwritable(self.path, error) from None
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the directory may be gone; the lock goes with it
                lock.__exit__()

    def is_to_blame(self, error: OSError) -> bool:
        """Whether an error says that the directory takes no more, and not that something of ours is wrong."""
        if isinstance(error, JournalLost):
            return True
        is_here = error.filename is None or self.path in Path(os.fsdecode(error.filename)).parents
        return error.errno in _UNWRITABLE and is_here

    def check(self, inputs: tuple[str, ...]) -> None:
        """See that nothing in the directory is somebody else's.

        Raises:
            ConfigError: an input lies in it, or files of ours have names that are taken.
        """
        self._refuse_inputs(inputs)
        self._refuse_foreign_files()

    def read_manifest(self) -> dict[str, Any] | None:
        """Read the manifest of an earlier process; None when there is none of ours."""
        manifest = read_json(self.manifest)
        return manifest if manifest is not None and manifest.get("kind") == MANIFEST_KIND else None

    def forget(self) -> None:
        """Remove an earlier run's rows, just before the first new one. The manifest stays, to be replaced."""
        for path in (self.results, self.heads, self.journal, self.scores):
            path.unlink(missing_ok=True)
        sync_folder(self.path)

    def reopen(self) -> None:
        """Turn a finished run's rows back into a journal, so that they can be continued."""
        if not self.journal.exists() and self.results.exists() and self.heads.exists():
            reopen(self.journal, self.results, self.heads)
        if self.journal.exists():
            for path in (self.results, self.heads, self.scores):
                path.unlink(missing_ok=True)
            sync_folder(self.path)

    def _refuse_inputs(self, inputs: tuple[str, ...]) -> None:
        ours = (self.results, self.heads, self.scores, self.journal, self.manifest, self.status, self.log, self.lock)
        names = {path.resolve() for path in ours}
        for name in inputs:
            if Path(name).resolve() in names:
                raise ConfigError(f"the input {name} lies in the output directory {self.path}: choose another output")

    def _refuse_foreign_files(self) -> None:
        if self.read_manifest() is not None:
            return
        for path in (self.manifest, self.results, self.heads, self.scores):
            if path.exists():
                raise ConfigError(f"{path} was not written by a run: choose another output, nothing is overwritten")
        if self.journal.exists() and self.journal.stat().st_size:
            with self.journal.open("rb") as file:
                start = file.readline(80)
            if not start.startswith(b'{"kind": "' + JOURNAL_KIND.encode()[: max(len(start) - 10, 0)]):
                raise ConfigError(
                    f"{self.journal} was not written by a run: choose another output, nothing is overwritten"
                )


class RunLog:
    """Sends the log messages of a run to its `run.log` while it lasts, and the engine's warnings to `stream` too."""

    def __init__(self, path: Path, stream: TextIO):
        self._path = path
        self._warnings = _Handler(stream)
        self._warnings.setLevel(logging.WARNING)
        self._warnings.setFormatter(logging.Formatter("nanovllm: warning: %(message)s"))

    def __enter__(self) -> logging.Logger:
        self._handler = _FileHandler(self._path, encoding="utf-8", errors="backslashreplace")
        self._handler.setFormatter(logging.Formatter(_LOG_FORMAT))
        self._levels = {name: logging.getLogger(name).level for name in _LOGGERS}
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self._handler)
            logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger("nanovllm").addHandler(self._warnings)
        return logging.getLogger("jobs")

    def __exit__(self, *exception) -> None:
        logging.getLogger("nanovllm").removeHandler(self._warnings)
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self._handler)
            logging.getLogger(name).setLevel(self._levels[name])
        try:
            self._handler.close()
        except OSError:
            pass  # a full disk; what matters is in the journal


class _Quiet:
    """A log that cannot be written, on a full disk or to nobody, must not end the run or print a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the message."""


class _Handler(_Quiet, logging.StreamHandler):
    pass


class _FileHandler(_Quiet, logging.FileHandler):
    pass


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None when there is none."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def unwritable(path: Path, error: OSError) -> ConfigError:
    """Make the error for a directory that cannot be written."""
    return ConfigError(f"the output directory {path} cannot be written: {error.strerror or error}")
