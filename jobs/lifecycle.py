"""How a run ends from outside: SIGINT and SIGTERM.

The first signal raises `Stopped` in the main thread, between two steps of the engine, but never inside a `shielded`
block, so that no result is written by half. After it the signals have their plain meaning again: a second one ends the
process at once.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal asked the run to end. Not an Exception, so that no handler for errors takes it for one.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals:
    """Turns signals into `Stopped` while it is entered. Outside the main thread it does nothing."""

    def __init__(self):
        self._previous: dict[int, object] = {}
        self._is_shielded = False
        self._pending: int | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {signum: signal.signal(signum, self._handle) for signum in _SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    @contextlib.contextmanager
    def shielded(self) -> Iterator[None]:
        """Hold a signal back until the block has ended."""
        self._is_shielded = True
        try:
            yield
        finally:
            self._is_shielded = False
        if self._pending is not None:
            signum, self._pending = self._pending, None
            raise Stopped(signum)

    def _handle(self, signum: int, frame: object) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if not self._is_shielded:
            raise Stopped(signum)
        self._pending = signum
