"""Read rows in a thread, so that a pipe that brings them slowly does not keep the engine from those that are there.

Owns the thread and the queue between. Knows nothing of where rows come from or go to.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

_MAX_ROWS = 256  # read before anybody asks for them
_JOIN_S = 0.01

_END = object()


class ReadAhead:
    """An iterator over `rows`, which are read in a thread.

    It waits for the next row only while nobody has anything else to do; otherwise None says that there is none yet.

    Args:
        rows: what is read.
        give_up: makes the reading of `rows` end soon, when called from another thread.
        is_busy: whether who asks has other work.
    """

    def __init__(self, rows: Iterator[Any], give_up: Callable[[], None], is_busy: Callable[[], bool]):
        self._rows = rows
        self._give_up = give_up
        self._is_busy = is_busy
        self._is_closed = False
        self._queue: queue.Queue[Any] = queue.Queue(_MAX_ROWS)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="read-ahead")
        self._thread.start()

    def __iter__(self) -> ReadAhead:
        return self

    def __next__(self) -> Any:
        try:
            row = self._queue.get(block=not self._is_busy())
        except queue.Empty:
            return None
        if row is not _END:
            return row
        self._queue.put(_END)  # for whoever asks once more
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """End the thread. What it has read is lost."""
        self._is_closed = True
        self._give_up()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                while True:  # it may wait for room
                    self._queue.get(block=False)
            self._thread.join(_JOIN_S)

    def _read(self) -> None:
        try:
            for row in self._rows:
                if self._is_closed:
                    return
                self._queue.put(row)
        except BaseException as error:  # belongs to the thread that asks
            self._error = error
        self._queue.put(_END)
