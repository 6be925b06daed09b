"""Find ids that are given twice, in little memory.

Default ids (a row's index) cost one bit, given ids 16 bytes in an open hash table of 64-bit digests and places. Two
different ids of ten million share a digest with a chance of three in a million; the second would be taken for a repeat.
"""

from __future__ import annotations

import hashlib
from array import array

_PLACE_BITS = 40  # lines of a file; the bits above count files
_FIRST_SIZE = 1 << 10


class RowIds:
    """Remembers where each id was first used."""

    def __init__(self):
        self._digests = array("Q", bytes(8 * _FIRST_SIZE))
        self._places = array("Q", bytes(8 * _FIRST_SIZE))
        self._num_used = 0
        self._has_default = bytearray()
        self._files: list[str] = []

    def claim_default(self, index: int) -> str | None:
        """Use a row's index as its id. Gives the place where it was used before, or None."""
        first = self._lookup(_digest(str(index)))
        if first is None:
            self._mark_default(index)
        return first

    def claim(self, row_id: str, file: str, line: int) -> str | None:
        """Use an id that a row brings. Gives the place where it was used before, or None."""
        if _is_index(row_id) and self._is_default(int(row_id)):
            return f"row {row_id}, which has its index as its id"
        digest = _digest(row_id)
        first = self._lookup(digest)
        if first is None:
            self._insert(digest, self._place(file, line))
        return first

    def _lookup(self, digest: int) -> str | None:
        slot = self._slot(digest)
        if not self._digests[slot]:
            return None
        place = self._places[slot]
        return f"{self._files[place >> _PLACE_BITS]}, line {place & ((1 << _PLACE_BITS) - 1)}"

    def _slot(self, digest: int) -> int:
        mask = len(self._digests) - 1
        slot = digest & mask
        while self._digests[slot] not in (0, digest):
            slot = (slot + 1) & mask
        return slot

    def _insert(self, digest: int, place: int) -> None:
        if 3 * self._num_used >= 2 * len(self._digests):
            self._grow()
        slot = self._slot(digest)
        self._digests[slot], self._places[slot] = digest, place
        self._num_used += 1

    def _grow(self) -> None:
        digests, places = self._digests, self._places
        self._digests = array("Q", bytes(16 * len(digests)))
        self._places = array("Q", bytes(16 * len(digests)))
        for digest, place in zip(digests, places, strict=True):
            if digest:
                slot = self._slot(digest)
                self._digests[slot], self._places[slot] = digest, place

    def _place(self, file: str, line: int) -> int:
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        return (len(self._files) - 1) << _PLACE_BITS | line

    def _mark_default(self, index: int) -> None:
        byte, bit = divmod(index, 8)
        if byte >= len(self._has_default):
            self._has_default.extend(bytes(byte + 1 - len(self._has_default)))
        self._has_default[byte] |= 1 << bit

    def _is_default(self, index: int) -> bool:
        byte, bit = divmod(index, 8)
        return byte < len(self._has_default) and bool(self._has_default[byte] >> bit & 1)


def _is_index(row_id: str) -> bool:
    # 18 digits: more would be no index, and Python refuses to convert very long ones
    return row_id.isascii() and row_id.isdecimal() and len(row_id) <= 18 and str(int(row_id)) == row_id


def _digest(row_id: str) -> int:
    data = hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(data, "little") or 1  # 0 marks an empty slot
