"""How a run ends from outside: SIGINT, SIGTERM, and its deadline.

The first signal raises `Stopped` in the main thread, between two steps of the engine, but never inside a `shielded`
block, so that no result is written by half. After it the signals have their plain meaning again: a second one ends the
process at once. The deadline comes as an alarm and raises `DeadlineReached` by the same rules.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ALARM = signal.SIGALRM


class Stopped(KeyboardInterrupt):
    """A signal asked the run to end. Of this kind because handlers for any error let it pass.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class DeadlineReached(KeyboardInterrupt):
    """The time of the run is over. Passes handlers like `Stopped`."""


class StopSignals:
    """Turns signals into `Stopped` while it is entered. Outside the main thread it does nothing."""

    def __init__(self):
        self._previous: dict[int, object] = {}
        self._is_shielded = False
        self._pending: int | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {signum: signal.signal(signum, self._handle) for signum in (*_SIGNALS, _ALARM)}
        return self

    def __exit__(self, *exception) -> None:
        if self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def set_alarm(self, seconds: float) -> None:
        """Raise `DeadlineReached` in so many seconds."""
        if self._previous:
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))

    @contextlib.contextmanager
    def shielded(self) -> Iterator[None]:
        """Hold a signal back until the block has ended."""
        self._is_shielded = True
        try:
            yield
        finally:
            self._is_shielded = False
        # also one that was raised where Python drops exceptions, as in a finalizer
        if self._pending is not None:
            raise _exception(self._pending)

    def hold(self) -> None:
        """Hold every first signal back from here on: the run is about to end by itself."""
        self._is_shielded = True

    def _handle(self, signum: int, frame: object) -> None:
        if signum != _ALARM:
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_DFL)
        if self._pending is None or signum != _ALARM:
            self._pending = signum
        if not self._is_shielded:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise _exception(self._pending)


def _exception(signum: int) -> KeyboardInterrupt:
    return DeadlineReached() if signum == _ALARM else Stopped(signum)
