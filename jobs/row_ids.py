"""Find ids that are given twice, in little memory.

A default id (a row's index) costs one bit. A given id costs 14 bytes: 80 bits of a digest, and where it was first used.
Among a billion different ids two share all 80 bits with a chance of four in ten million, among ten million with one of
four in a hundred thousand million; nothing less makes one id be taken for another.
"""

from __future__ import annotations

import bisect
import hashlib

import numpy as np

_LOW_BITS = 16  # of a digest, beside the 64 by which the table is sorted
_LAST_PLACE = 2**32 - 1
_MIN_PENDING = 1 << 11
_PENDING_SHARE = 256  # a larger table takes more at once, so that moving it costs the same for each id
_BLOCK = 1 << 16


class RowIds:
    """Remembers where each id was first used."""

    def __init__(self):
        self._table = _Table()
        self._has_default = bytearray()
        self._files: list[str] = []
        self._starts: list[int] = []
        self._last_place = -1

    def claim_default(self, index: int) -> str | None:
        """Use a row's index as its id. Gives the place where it was used before, or None."""
        place = self._table.get(_digest(str(index)))
        if place is not None:
            return self._name(place)
        self._mark_default(index)
        return None

    def claim(self, row_id: str, file: str, line: int) -> str | None:
        """Use an id that a row brings. Gives the place where it was used before, or None."""
        if _is_index(row_id) and self._is_default(int(row_id)):
            return f"row {row_id}, which has its index as its id"
        digest = _digest(row_id)
        place = self._table.get(digest)
        if place is not None:
            return self._name(place)
        self._table.add(digest, self._place(file, line))
        return None

    def _place(self, file: str, line: int) -> int:
        """Number the lines of all files, one file after another."""
        if not self._files or self._files[-1] != file:
            self._files.append(file)
            self._starts.append(self._last_place + 1)
        self._last_place = self._starts[-1] + line
        return min(self._last_place, _LAST_PLACE)

    def _name(self, place: int) -> str:
        number = bisect.bisect_right(self._starts, place) - 1
        return f"{self._files[number]}, line {place - self._starts[number]}"

    def _mark_default(self, index: int) -> None:
        byte, bit = divmod(index, 8)
        if byte >= len(self._has_default):
            self._has_default.extend(bytes(byte + 1 - len(self._has_default)))
        self._has_default[byte] |= 1 << bit

    def _is_default(self, index: int) -> bool:
        byte, bit = divmod(index, 8)
        return byte < len(self._has_default) and bool(self._has_default[byte] >> bit & 1)


class _Table:
    """Places by digest: sorted columns without gaps, and a dict of the newest that is merged into them now and then.

    The columns grow where they lie and are merged from their end, a block at a time, so that no second copy exists.
    """

    def __init__(self):
        self._pending: dict[int, int] = {}
        self._highs = np.zeros(0, np.uint64)
        self._lows = np.zeros(0, np.uint16)
        self._places = np.zeros(0, np.uint32)

    def get(self, digest: int) -> int | None:
        """Give the place that belongs to a digest, or None."""
        place = self._pending.get(digest)
        if place is not None:
            return place
        # a plain int would have the whole column converted
        high, low = np.uint64(digest >> _LOW_BITS), digest & ((1 << _LOW_BITS) - 1)
        at = int(self._highs.searchsorted(high))
        while at < len(self._highs) and self._highs[at] == high:
            if self._lows[at] == low:
                return int(self._places[at])
            at += 1
        return None

    def add(self, digest: int, place: int) -> None:
        """Take a digest that the table does not have."""
        self._pending[digest] = place
        if len(self._pending) >= max(_MIN_PENDING, len(self._highs) // _PENDING_SHARE):
            self._merge()

    def _merge(self) -> None:
        digests = sorted(self._pending)
        highs = np.array([digest >> _LOW_BITS for digest in digests], np.uint64)
        lows = np.array([digest & ((1 << _LOW_BITS) - 1) for digest in digests], np.uint16)
        places = np.array([self._pending[digest] for digest in digests], np.uint32)
        self._pending = {}
        positions = self._highs.searchsorted(highs)
        for column, new in ((self._highs, highs), (self._lows, lows), (self._places, places)):
            _insert(column, positions, new)


def _insert(column: np.ndarray, positions: np.ndarray, values: np.ndarray) -> None:
    """Put values before the given positions, which ascend. The column must be nobody's view: it is made longer."""
    end, left = len(column), len(values)
    column.resize(end + left, refcheck=False)
    while left:
        begin = max(end - _BLOCK, 0)
        first = int(positions[:left].searchsorted(begin))
        column[begin + first : end + left] = np.insert(
            column[begin:end], positions[first:left] - begin, values[first:left]
        )
        end, left = begin, first


def _is_index(row_id: str) -> bool:
    # 18 digits: more would be no index, and Python refuses to convert very long ones
    return row_id.isascii() and row_id.isdecimal() and len(row_id) <= 18 and str(int(row_id)) == row_id


def _digest(row_id: str) -> int:
    data = hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=10).digest()
    return int.from_bytes(data, "little")
