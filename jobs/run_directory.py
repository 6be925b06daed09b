"""The directory of a run: which files are ours, and when it may be used.

`results.jsonl` exists only for a finished run; `results.partial.jsonl` only for one that is at work or was interrupted.
What the user put there is never touched.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TextIO

from nanovllm import ConfigError

MANIFEST_KIND = "nanovllm-run"
"""Value of `kind` in every manifest of ours."""

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LOGGERS = ("jobs", "nanovllm")


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.results = path / "results.jsonl"
        self.partial = path / "results.partial.jsonl"
        self.manifest = path / "manifest.json"
        self.log = path / "run.log"

    def prepare(self, inputs: tuple[str, ...], restart: bool) -> None:
        """Create the directory, or see that it may be used.

        Raises:
            ConfigError: it cannot be written, holds files of somebody else, or a finished run.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.log.open("ab").close()
        except OSError as error:
            raise ConfigError(f"the output directory {self.path} cannot be written: {error.strerror}") from None
        self._refuse_inputs(inputs)
        self._refuse_foreign_files()
        if self.results.exists() and not restart:
            raise ConfigError(
                f"{self.results} holds the results of a finished run: choose another output, or give --restart to "
                "forget them"
            )

    def forget(self) -> None:
        """Remove an earlier run's results, just before the first new one. The manifest stays, to be replaced."""
        for path in (self.results, self.partial):
            path.unlink(missing_ok=True)

    def _refuse_inputs(self, inputs: tuple[str, ...]) -> None:
        ours = {path.resolve() for path in (self.results, self.partial, self.manifest, self.log)}
        for name in inputs:
            if Path(name).resolve() in ours:
                raise ConfigError(f"the input {name} lies in the output directory {self.path}: choose another output")

    def _refuse_foreign_files(self) -> None:
        if self._has_own_manifest():
            return
        for path in (self.manifest, self.results, self.partial):
            if path.exists():
                raise ConfigError(f"{path} was not written by a run: choose another output, nothing is overwritten")

    def _has_own_manifest(self) -> bool:
        try:
            manifest = json.loads(self.manifest.read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(manifest, dict) and manifest.get("kind") == MANIFEST_KIND


class RunLog:
    """Sends the log messages of a run to its `run.log` while it lasts, and the engine's warnings to `stream` too."""

    def __init__(self, path: Path, stream: TextIO):
        self._path = path
        self._warnings = logging.StreamHandler(stream)
        self._warnings.setLevel(logging.WARNING)
        self._warnings.setFormatter(logging.Formatter("nanovllm: warning: %(message)s"))

    def __enter__(self) -> logging.Logger:
        self._handler = logging.FileHandler(self._path, encoding="utf-8", errors="backslashreplace")
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
        self._handler.close()
