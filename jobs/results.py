"""Keep results as they come, and bring them into input order at the end.

A finished row is appended at once to a partial file, in the order of completion; memory holds eight bytes a row, its
place there. `finish` writes `results.jsonl` in input order and takes the name by rename, so that a file of that name
is always whole.

`ResultSink` is the seam: whatever has these methods can stand in for the partial file.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from jobs.files import write_atomically
from jobs.result_lines import Result

SYNC_SECONDS = 1.0

# One 64-bit word a row: where its lines begin (up to 16 TiB) and how many they are.
_COUNT_BITS = 20
_LARGEST_COUNT = (1 << _COUNT_BITS) - 1
_MISSING = 2**64 - 1


class ResultSink(Protocol):
    """Takes the results of a run, one row at a time, in any order."""

    def write(self, result: Result) -> None:
        """Keep one row's lines, so that they survive this process."""

    def finish(self) -> int:
        """Put all lines in input order under their final name. Gives the number of lines."""

    def close(self) -> None:
        """Stop without finishing; what was written stays."""


class PartialFile:
    """The results of a run until all rows are done.

    Attributes:
        path: the partial file: JSON lines as in the results, in completion order.
    """

    def __init__(self, path: Path, final_path: Path, clock: Callable[[], float] = time.monotonic):
        self.path = path
        self._final_path = final_path
        self._clock = clock
        self._spots = array("Q")
        self._end = 0
        self._file: BinaryIO = path.open("w+b")
        self._synced_at = clock()

    def write(self, result: Result) -> None:
        """Append one row's lines and hand them to the system; force them to disk once a second."""
        data = "".join(line + "\n" for line in result.lines).encode("utf-8")
        if len(result.lines) > _LARGEST_COUNT:
            raise ValueError(f"row {result.index} has {len(result.lines)} completions, at most {_LARGEST_COUNT} fit")
        while len(self._spots) <= result.index:
            self._spots.append(_MISSING)
        self._file.write(data)
        self._file.flush()
        self._spots[result.index] = self._end << _COUNT_BITS | len(result.lines)
        self._end += len(data)
        now = self._clock()
        if now - self._synced_at >= SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced_at = now

    def finish(self) -> int:
        """Write the results in input order, and drop the partial file."""
        num_lines = 0

        def count() -> Iterator[bytes]:
            nonlocal num_lines
            for line in self._lines_in_order():
                num_lines += 1
                yield line

        write_atomically(self._final_path, count())
        self._file.close()
        self.path.unlink()
        return num_lines

    def close(self) -> None:
        """Force what was written to disk and stop."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def _lines_in_order(self) -> Iterator[bytes]:
        for spot in self._spots:
            if spot == _MISSING:
                continue
            self._file.seek(spot >> _COUNT_BITS)
            for _ in range(spot & _LARGEST_COUNT):
                yield self._file.readline()
