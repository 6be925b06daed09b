"""The journal of a run: every finished row, appended at once, found again after whatever ended the process.

An entry is a head and the row's result lines as they will stand in the results, each on a line of its own: the file is
JSON lines all through. The head says how many lines and bytes follow and their checksum, so that a torn or zeroed tail
is told from whole entries. Memory holds 18 bytes for each entry that an earlier process left, and, once all rows are
done, 8 bytes a row for the order of the results.

Knows neither what a row is nor what makes one stale: it finds entries by key and gives back their heads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs import json_text
from nanovllm import ConfigError

SYNC_SECONDS = 1.0
KIND = "nanovllm-journal"
_FIRST_LINE = b'{"kind": "nanovllm-journal", "version": 1}\n'
_MISSING = 2**64 - 1


class JournalLost(OSError):
    """The journal's file is no longer in its directory, so that nothing written to it would survive."""


@dataclass(slots=True)
class Entry:
    """A row in the journal.

    Attributes:
        offset: where its head begins.
        head: the head's values.
        number: its place in the journal's table of earlier entries.
    """

    offset: int
    head: dict[str, Any]
    number: int


@dataclass(slots=True)
class Recovery:
    """What was found at the start: whole entries, and the bytes of a torn tail that were cut off."""

    num_entries: int = 0
    num_cut_bytes: int = 0


class Journal:
    """The journal of one run, open for appending.

    Args:
        path: the file.
        clock: seconds that only go forward.

    Raises:
        ConfigError: the file is not a journal.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic):
        self.path = path
        self._clock = clock
        self._old_keys = np.zeros(0, np.uint64)
        self._old_offsets = np.zeros(0, np.int64)
        self._is_found = np.zeros(0, bool)
        self._is_kept = np.zeros(0, bool)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self.recovery = self._recover()
        except BaseException:
            os.close(self._file)
            raise
        self._reader = path.open("rb")
        self._synced_at = clock()
        self._is_synced = False
        self._closing = threading.Event()
        self._syncer = threading.Thread(target=self._keep_synced, name="journal", daemon=True)
        self._syncer.start()

    def find(self, key: str) -> Entry | None:
        """Find the newest entry that an earlier process left under `key`."""
        digest = np.uint64(_digest(key))
        first = int(np.searchsorted(self._old_keys, digest))
        if first == len(self._old_keys) or self._old_keys[first] != digest:
            return None
        entry = Entry(int(self._old_offsets[first]), {}, first)
        self._reader.seek(entry.offset)
        entry.head = json.loads(self._reader.readline())
        if entry.head["key"] != key:
            return None
        self._is_found[first] = True
        return entry

    def unfound(self) -> Iterator[Entry]:
        """Give the newest entry of each key that an earlier process left and nobody asked for."""
        for number in np.flatnonzero(~self._is_found):
            offset = int(self._old_offsets[number])
            self._reader.seek(offset)
            yield Entry(offset, json.loads(self._reader.readline()), int(number))

    def lines(self, entry: Entry) -> list[str]:
        """Give an entry's result lines."""
        self._reader.seek(entry.offset)
        self._reader.readline()
        return [self._reader.readline()[:-1].decode("utf-8") for _ in range(entry.head["lines"])]

    def keep(self, entry: Entry) -> None:
        """Let an entry that was found stand for the row at its index."""
        self._is_kept[entry.number] = True

    def append(self, index: int, key: str, values: dict[str, Any], lines: list[str]) -> None:
        """Append a row and hand it to the system; force it to disk once a second.

        Raises:
            OSError: the disk is full or the file is gone; what was appended before is whole.
        """
        data = _encode(index, key, values, lines)
        try:
            _write_all(self._file, data)
        except BaseException:
            self._cut(self._end)
            raise
        self._end += len(data)
        self._is_synced = False
        self.sync_if_due()

    def sync_if_due(self) -> None:
        """Force what was appended to disk when the last time is a second ago."""
        if not self._is_synced and self._clock() - self._synced_at >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Force what was appended to disk."""
        self._is_synced = True  # before, since a row may be appended meanwhile
        try:
            os.fsync(self._file)
        except OSError:
            self._is_synced = False
            raise
        self._synced_at = self._clock()
        if os.fstat(self._file).st_nlink == 0:
            raise JournalLost(f"{self.path} was deleted while the run wrote to it")

    def order(self) -> array:
        """Find where the entry of each row of this run begins, by the row's index; `_MISSING` where it has none."""
        spots = array("Q")
        kept = np.sort(self._old_offsets[self._is_kept])
        for spot, head in self._heads():
            if spot < self._appended_at:
                number = int(kept.searchsorted(spot))
                if number == len(kept) or kept[number] != spot:
                    continue
            index = head["index"]
            if len(spots) <= index:
                spots.extend([_MISSING] * (index + 1 - len(spots)))
            spots[index] = spot
        return spots

    def ordered(self, order: array) -> Iterator[tuple[bytes, list[bytes]]]:
        """Give the head and the lines of each row in an `order`, ends of line kept."""
        for spot in order:
            if spot == _MISSING:
                continue
            self._reader.seek(spot)
            head = self._reader.readline()
            yield head, [self._reader.readline() for _ in range(json.loads(head)["lines"])]

    def close(self) -> None:
        """Force what was appended to disk and stop."""
        if self._file < 0:
            return
        self._closing.set()
        self._syncer.join()
        try:
            os.fsync(self._file)
        except OSError:
            pass  # the disk said what is wrong when the rows were written
        os.close(self._file)
        self._reader.close()
        self._file = -1

    def _keep_synced(self) -> None:
        """Force the last rows to disk when no other comes soon."""
        while not self._closing.wait(SYNC_SECONDS):
            if not self._is_synced:
                with contextlib.suppress(OSError):  # the next row will meet it too
                    self.sync()

    def _heads(self) -> Iterator[tuple[int, dict[str, Any]]]:
        spot = len(_FIRST_LINE)
        self._reader.seek(spot)
        while spot < self._end:
            line = self._reader.readline()
            head = json.loads(line)
            yield spot, head
            spot += len(line) + head["bytes"]
            self._reader.seek(head["bytes"], os.SEEK_CUR)

    def _cut(self, size: int) -> None:
        try:
            os.ftruncate(self._file, size)
            os.lseek(self._file, size, os.SEEK_SET)
        except OSError:
            pass  # the next start cuts it

    def _recover(self) -> Recovery:
        size = os.fstat(self._file).st_size
        keys, offsets = array("Q"), array("q")
        with self.path.open("rb") as file:
            first = file.readline()
            if first != _FIRST_LINE:
                if not _FIRST_LINE.startswith(first.rstrip(b"\0")):
                    raise ConfigError(
                        f"{self.path} is not a journal of this version: choose another output, nothing is overwritten"
                    )
                self._end = 0
            else:
                self._end = len(first)
                for end, head in _entries(file):
                    keys.append(_digest(head["key"]))
                    offsets.append(self._end)
                    self._end = end
        recovery = Recovery(len(keys), size - self._end)
        os.ftruncate(self._file, self._end)
        os.lseek(self._file, self._end, os.SEEK_SET)
        if self._end == 0:
            _write_all(self._file, _FIRST_LINE)
            self._end = len(_FIRST_LINE)
            os.fsync(self._file)
        elif recovery.num_cut_bytes:
            os.fsync(self._file)
        self._appended_at = self._end
        self._old_keys, self._old_offsets = _newest(keys, offsets)
        self._is_found = np.zeros(len(self._old_keys), bool)
        self._is_kept = np.zeros(len(self._old_keys), bool)
        return recovery


def rebuild(heads: Iterable[bytes], lines: Iterable[bytes]) -> Iterator[bytes]:
    """Give the content of a journal from the heads and the lines of finished results, both in one order.

    What does not fit its head ends the content there: the rows behind are done again.
    """
    yield _FIRST_LINE
    lines = iter(lines)
    for head in heads:
        values = _parse_head(head)
        if values is None:
            return
        body = b"".join(line for _, line in zip(range(values["lines"]), lines, strict=False))
        if not _fits(values, body):
            return
        yield head + body


def _encode(index: int, key: str, values: dict[str, Any], lines: list[str]) -> bytes:
    body = "".join(line + "\n" for line in lines).encode("utf-8")
    head = {"index": index, "key": key, **values, "lines": len(lines), "bytes": len(body), "crc": zlib.crc32(body)}
    return json_text.dumps(head).encode("utf-8") + b"\n" + body


def _entries(file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Give the end and the head of each whole entry from here on; stop at the first that is not."""
    position = file.tell()
    while line := file.readline():
        head = _parse_head(line)
        if head is None:
            return
        body = file.read(head["bytes"])
        if not _fits(head, body):
            return
        position += len(line) + len(body)
        yield position, head


def _parse_head(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        head = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(head, dict) or not isinstance(head.get("key"), str):
        return None
    sizes = [head.get(name) for name in ("index", "lines", "bytes", "crc")]
    is_whole = all(isinstance(size, int) and size >= 0 for size in sizes)
    return head if is_whole else None


def _fits(head: dict[str, Any], body: bytes) -> bool:
    return len(body) == head["bytes"] and zlib.crc32(body) == head["crc"] and body.count(b"\n") == head["lines"]


def _newest(keys: array, offsets: array) -> tuple[np.ndarray, np.ndarray]:
    """Sort by key; of equal keys keep the last entry. Empties both arrays: together they are most of the memory."""
    # an empty array has no buffer
    view = np.frombuffer(keys, np.uint64) if keys else np.zeros(0, np.uint64)
    order = np.argsort(view, kind="stable")
    sorted_keys = view[order]
    del view, keys[:]
    view = np.frombuffer(offsets, np.int64) if offsets else np.zeros(0, np.int64)
    sorted_offsets = view[order]
    del view, offsets[:], order
    is_last = np.ones(len(sorted_keys), bool)
    is_last[:-1] = sorted_keys[1:] != sorted_keys[:-1]
    if is_last.all():
        return sorted_keys, sorted_offsets
    return sorted_keys[is_last], sorted_offsets[is_last]


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
