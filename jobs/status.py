"""`status.json`: where a run stands, for whoever looks from outside; and the verdict of `nanovllm status`.

Written by a thread every two seconds, all or nothing, so that a reader always finds whole JSON. The heartbeat tells a
process that works from one that hangs; process id, start and boot tell one that is alive from one that was killed. Of
a process on another machine, or in another container, the heartbeat alone tells.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import exit_codes, json_text
from jobs.files import write_atomically
from jobs.lock import is_alive, own_identity
from jobs.progress import Series, Snapshot
from jobs.run_directory import RunDirectory, read_json
from nanovllm import ConfigError

TICK_SECONDS = 2.0
SCHEMA_VERSION = 1

# A heartbeat of another machine is believed so long; file systems and clocks may be some seconds behind.
BELIEVED_SECONDS = 60.0

# The words of the manifest's `status` in which a process is at work.
GENERATING = "generating"
WORKING = ("starting", "loading", GENERATING, "finishing")

logger = logging.getLogger("jobs")


class StatusFile:
    """Keeps `status.json` up to date while it is entered."""

    def __init__(self, path: Path):
        self._path = path
        self._phase = "starting"
        self._snapshot: Callable[[], Snapshot] | None = None
        self._series = Series()
        self._exit_code: int | None = None
        self._started = time.time()
        self._identity = own_identity()
        self._is_broken = False
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._tick, name="status", daemon=True)

    def __enter__(self) -> StatusFile:
        self.write()
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._ended.set()
        self._thread.join()
        self.write()

    def enter(self, phase: str, snapshot: Callable[[], Snapshot] | None = None) -> None:
        """Begin a phase; `snapshot` gives the numbers from now on."""
        self._record(is_last=True)
        self._phase = phase
        self._snapshot = snapshot or self._snapshot
        self.write()

    def end(self, phase: str, exit_code: int) -> None:
        """Say how the run ended."""
        self._record(is_last=True)
        self._phase, self._exit_code = phase, exit_code

    def write(self) -> None:
        """Write the file now. A disk that takes no more is the journal's affair; only the end is said nevertheless."""
        temporary = self._path.with_name(self._path.name + ".tmp")
        with self._lock:
            try:
                text = _encode(self._values(), self._series)
                temporary.write_text(text, "utf-8")
                temporary.replace(self._path)
            except OSError as error:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                if self._exit_code is not None:
                    with contextlib.suppress(OSError):
                        _overwrite(self._path, json_text.dumps(self._values()))
                if not self._is_broken:
                    logger.warning("%s cannot be written: %s", self._path, error.strerror)
                self._is_broken = True

    def _tick(self) -> None:
        while not self._ended.wait(TICK_SECONDS):
            self._record()
            self.write()

    def _record(self, is_last: bool = False) -> None:
        """Take a point of the series while rows are done; loading and writing files are no part of the speed."""
        with self._lock:
            if self._phase == GENERATING and self._snapshot is not None:
                self._series.add(self._snapshot(), is_last)

    def _values(self) -> dict[str, Any]:
        snapshot = self._snapshot() if self._snapshot else None
        return {
            "schema_version": SCHEMA_VERSION,
            "phase": self._phase,
            "done": snapshot.rows if snapshot else 0,
            "total": snapshot.total if snapshot else None,
            "errors": snapshot.errors if snapshot else 0,
            "kept": snapshot.kept if snapshot else 0,
            "tokens_per_s": round(snapshot.tokens_per_s, 2) if snapshot else 0.0,
            "eta_s": _rounded(snapshot.eta_s) if snapshot and self._phase in WORKING else None,
            "exit_code": self._exit_code,
            **self._identity,
            "running_since": round(self._started, 3),
            "heartbeat": round(time.time(), 3),
        }


def rewrite_exit_code(path: Path, exit_code: int) -> None:
    """Have the status of a finished run give another exit code, where there is one."""
    values = read_json(path)
    if values is not None and values.get("exit_code") != exit_code:
        values["exit_code"] = exit_code
        write_atomically(path, [(json_text.dumps(values, indent=2) + "\n").encode("utf-8")])


def judge(folder: Path) -> tuple[int, dict[str, Any]]:
    """Say where the run in a directory stands.

    Returns:
        The exit code of `nanovllm status`, and what is known: a finished or stopped run has the code that its own
        command had; 6 is a run at work; 1 is one whose process is dead without having said how it ended.

    Raises:
        ConfigError: there is no run.
    """
    directory = RunDirectory(folder)
    status = read_json(directory.status) or _of_manifest(directory.read_manifest())
    if status is None:
        raise ConfigError(f"{folder} holds no status.json: give the output directory of a run")
    code = status.get("exit_code")
    if isinstance(code, int):
        return code, status
    if is_alive(status) or (status.get("host") != own_identity()["host"] and _is_fresh(status.get("heartbeat"))):
        return exit_codes.LOCKED, status
    return exit_codes.INTERNAL_FAILURE, {**status, "phase": "killed"}


def describe(folder: Path, values: dict[str, Any], now: float) -> str:
    """Say in one line what `judge` found."""
    total = "" if values.get("total") is None else f"/{values['total']}"
    parts = [f"{folder}: {values.get('phase')}", f"{values.get('done', 0)}{total} rows"]
    if values.get("errors"):
        parts.append(f"{values['errors']} errors")
    parts.append(f"{values.get('tokens_per_s', 0.0)} tok/s")
    if values.get("eta_s") is not None:
        parts.append(f"{values['eta_s']:.0f} s left")
    if values.get("exit_code") is None:
        parts.append(f"process {values.get('pid')}, last heard of {max(now - values.get('heartbeat', 0), 0):.0f} s ago")
    else:
        parts.append(f"exit code {values['exit_code']}")
    return ", ".join(parts)


def _of_manifest(manifest: dict[str, Any] | None) -> dict[str, Any] | None:
    """Say how a run ended that no process of its own watched over, such as joined shards."""
    if manifest is None or not isinstance(manifest.get("exit_code"), int):
        return None
    counts = manifest.get("counts") or {}
    return {
        "phase": manifest.get("status"),
        "done": counts.get("rows", 0),
        "total": counts.get("rows"),
        "errors": counts.get("errors", 0),
        "tokens_per_s": manifest.get("tokens_per_s", 0.0),
        "exit_code": manifest["exit_code"],
    }


def _overwrite(path: Path, text: str) -> None:
    """Put a short text in place of a longer one, which needs no room on a full disk."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        data = text.encode("utf-8")
        if len(data) < size:
            file.write(data.ljust(size - 1) + b"\n")


def _encode(values: dict[str, Any], series: Series) -> str:
    """Write a value to a line, and the series, which programs read, to one."""
    text = json_text.dumps(values, indent=2)
    return f'{text[:-2]},\n  "series": {json_text.dumps(series.as_json())}\n}}\n'


def _is_fresh(heartbeat: Any) -> bool:
    return isinstance(heartbeat, int | float) and abs(time.time() - heartbeat) < BELIEVED_SECONDS


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
