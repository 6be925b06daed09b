"""Show on stderr how far a run is: a bar, plain lines, JSON lines, or nothing.

A ticker thread asks for the numbers, so that the display moves while the engine is at work on the first rows. Knows
counts, nothing of rows or files.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from jobs import json_text

BAR_SECONDS = 0.5
LINE_SECONDS = 5.0
MAX_POINTS = 239  # odd: the newest of one too many stays when every second one goes


@dataclass(slots=True)
class Snapshot:
    """Where a run stands.

    Attributes:
        rows: rows that are done, of `total` (None when unknown).
        errors: error rows among them.
        running: sequences in the engine's batch; `waiting` ones are admitted but not in it.
        completion_tokens: tokens generated so far, unfinished rows included.
        seconds: since generation began.
        kept: rows among the done ones whose result an earlier process left.
    """

    rows: int
    total: int | None
    errors: int
    running: int
    waiting: int
    completion_tokens: int
    seconds: float
    kept: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens for each second so far."""
        return self.completion_tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds until the end if the rest goes like what was done; None while that cannot be told."""
        done = self.rows - self.kept
        if self.total is None or done <= 0 or self.seconds <= 0:
            return None
        return max(self.total - self.rows, 0) * self.seconds / done


class Series:
    """How a run went over time, in a bounded number of points.

    When it is full, every second point is dropped, and from then on only every second call gives a point, and so on:
    points lie at equal distances if calls do.
    """

    def __init__(self):
        self._points: list[tuple[float, int, int]] = []
        self._num_calls = 0
        self._every = 1

    def add(self, snapshot: Snapshot, is_last: bool = False) -> None:
        """Take a point, if it is its turn; the last one of a run is always taken."""
        self._num_calls += 1
        last_s = self._points[-1][0] if self._points else 0.0
        if snapshot.seconds <= last_s or (self._num_calls % self._every and not is_last):
            return
        if is_last and len(self._points) > 1 and snapshot.seconds - last_s < (last_s - self._points[-2][0]) / 2:
            self._points.pop()  # so near to the end that the speed between the two would be noise
        self._points.append((round(snapshot.seconds, 3), snapshot.rows - snapshot.kept, snapshot.completion_tokens))
        if len(self._points) > MAX_POINTS:
            del self._points[::2]
            self._every *= 2

    def as_json(self) -> dict[str, list]:
        """Give the points as columns: seconds since generation began, rows and completion tokens done by then."""
        columns = list(zip(*self._points, strict=True)) or [(), (), ()]
        return dict(zip(("seconds", "rows", "completion_tokens"), map(list, columns), strict=True))


class Display(Protocol):
    """One way to show snapshots.

    Attributes:
        seconds: how long to wait between two snapshots.
    """

    seconds: float

    def show(self, snapshot: Snapshot) -> None:
        """Show where the run stands."""

    def close(self, snapshot: Snapshot) -> None:
        """Show where it ended and leave the terminal clean."""


class Bar:
    """One tqdm bar over rows."""

    seconds = BAR_SECONDS

    def __init__(self, stream: TextIO, total: int | None):
        from tqdm import tqdm

        file = _Forgiving(stream)
        self._bar = tqdm(total=total, unit="row", file=file, dynamic_ncols=True, mininterval=0, smoothing=0)

    def show(self, snapshot: Snapshot) -> None:
        """Move the bar."""
        postfix = f"{snapshot.tokens_per_s:.1f} tok/s, running {snapshot.running}, waiting {snapshot.waiting}"
        if snapshot.errors:
            postfix += f", errors {snapshot.errors}"
        self._bar.n = snapshot.rows
        self._bar.set_postfix_str(postfix, refresh=True)

    def close(self, snapshot: Snapshot) -> None:
        """Leave the last state on the terminal."""
        self.show(snapshot)
        self._bar.close()


class _Forgiving:
    """A stream that drops what nobody takes: tqdm writes while it is made and while it is dropped, too."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or drop."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class PlainLines:
    """A line now and then, for logs."""

    seconds = LINE_SECONDS

    def __init__(self, stream: TextIO):
        self._stream = stream

    def show(self, snapshot: Snapshot) -> None:
        """Print one line."""
        total = "" if snapshot.total is None else f"/{snapshot.total}"
        errors = f", {snapshot.errors} errors" if snapshot.errors else ""
        print(
            f"{snapshot.rows}{total} rows{errors}, {snapshot.tokens_per_s:.1f} tok/s, running {snapshot.running}, "
            f"waiting {snapshot.waiting}, {snapshot.seconds:.0f} s",
            file=self._stream,
            flush=True,
        )

    def close(self, snapshot: Snapshot) -> None:
        """Print the last line."""
        self.show(snapshot)


class JsonLines:
    """A JSON object now and then, for programs."""

    seconds = LINE_SECONDS

    def __init__(self, stream: TextIO):
        self._stream = stream

    def show(self, snapshot: Snapshot) -> None:
        """Print one object."""
        self._print("running", snapshot)

    def close(self, snapshot: Snapshot) -> None:
        """Print the last object."""
        self._print("ended", snapshot)

    def _print(self, phase: str, snapshot: Snapshot) -> None:
        values = {
            "phase": phase,
            "rows": snapshot.rows,
            "total": snapshot.total,
            "errors": snapshot.errors,
            "running": snapshot.running,
            "waiting": snapshot.waiting,
            "completion_tokens": snapshot.completion_tokens,
            "tokens_per_s": round(snapshot.tokens_per_s, 2),
            "seconds": round(snapshot.seconds, 2),
        }
        print(json_text.dumps(values), file=self._stream, flush=True)


class Silence:
    """Shows nothing."""

    seconds = LINE_SECONDS

    def show(self, snapshot: Snapshot) -> None:
        """Do nothing."""

    def close(self, snapshot: Snapshot) -> None:
        """Do nothing."""


def make_display(mode: str, stream: TextIO, total: int | None) -> Display:
    """Make the display for `--progress`; auto is a bar on a terminal and plain lines elsewhere."""
    if mode == "auto":
        mode = "bar" if stream.isatty() else "plain"
    if mode == "bar":
        return Bar(stream, total)
    if mode == "none":
        return Silence()
    return PlainLines(stream) if mode == "plain" else JsonLines(stream)


class Progress:
    """Shows snapshots at the display's own pace while it is entered.

    Args:
        display: how to show.
        snapshot: gives the present state; called from a thread of its own.
    """

    def __init__(self, display: Display, snapshot: Callable[[], Snapshot]):
        self._display = display
        self._snapshot = snapshot
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._ended.set()
        self._thread.join()
        self._guarded(self._display.close)

    def _tick(self) -> None:
        while not self._ended.wait(self._display.seconds):
            self._guarded(self._display.show)

    def _guarded(self, show: Callable[[Snapshot], None]) -> None:
        # Nobody may be reading: a closed terminal or pipe must not end the run.
        try:
            show(self._snapshot())
        except (OSError, ValueError):
            self._display = Silence()
