"""Open an input for reading bytes: plain or gzip, a file or standard input.

Owns opening, the look at the first bytes, the running sha256, and waiting for a pipe. Knows nothing of rows.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import select
import stat
import sys
import zlib
from pathlib import Path
from typing import BinaryIO

from jobs.paths import STDIN
from nanovllm import ConfigError

_UTF16_OR_32 = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_GZIP_MAGIC = b"\x1f\x8b"
_PEEK_BYTES = 4096


class _Waiting:
    """Waits until a pipe has something to read, unless another thread says to give up."""

    def __init__(self):
        self._reading, self._writing = os.pipe()

    def wait(self, descriptor: int) -> bool:
        """Wait, and say whether there is something: bytes, or the end of the pipe."""
        poll = select.poll()
        poll.register(self._reading, select.POLLIN)
        poll.register(descriptor, select.POLLIN)
        return self._reading not in dict(poll.poll())

    def give_up(self) -> None:
        """End every `wait`, also those to come."""
        os.write(self._writing, b"x")

    def __del__(self):
        os.close(self._reading)
        os.close(self._writing)


class _HashingRaw(io.RawIOBase):
    """Pass bytes through and hash what passes. It ends where `waiting` gives up."""

    def __init__(self, file: BinaryIO, waiting: _Waiting | None = None):
        self._file = file
        self._waiting = waiting
        self._read = getattr(file, "read1", file.read)  # what a pipe has now, without waiting for more
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.at_end = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if self._waiting is not None and not self._waiting.wait(self._file.fileno()):
            return 0
        chunk = self._read(len(buffer))
        buffer[: len(chunk)] = chunk
        self.sha256.update(chunk)
        self.num_bytes += len(chunk)
        self.at_end = self.at_end or not chunk
        return len(chunk)

    def close(self) -> None:
        if not self.closed and self._file is not getattr(sys.stdin, "buffer", None):
            self._file.close()
        super().close()


class ByteSource:
    """One input file, checked before the run and read once.

    Attributes:
        path: the file, or None for standard input.
        name: how messages and the manifest call it.
        suffix: the extension that says how to read it, without `.gz`; `.jsonl` for standard input and nameless pipes.
    """

    def __init__(self, path: Path | None, stdin: BinaryIO | None = None):
        self.path = path
        self.name = STDIN if path is None else str(path)
        names = [] if path is None else [suffix.lower() for suffix in path.suffixes]
        self.is_gzip = names[-1:] == [".gz"]
        self.suffix = "".join(names[:-1][-1:] if self.is_gzip else names[-1:])
        self._is_nameless = path is None or (not names and _is_pipe(path))  # as a shell makes them for <(command)
        if self._is_nameless:
            self.suffix = ".jsonl"
        self._stdin = stdin
        self._held: BinaryIO | None = None
        self._raw: _HashingRaw | None = None
        self._waiting: _Waiting | None = None

    def check(self) -> None:
        """Look at the first bytes.

        Raises:
            ConfigError: the file cannot be read, or is not what its name says.
        """
        file = self._open()
        if self.is_regular():
            with file:
                self._check_start(file)
        else:  # what comes through a pipe comes once
            self._check_start(file)
            self._held = file

    def open(self) -> BinaryIO:
        """Open it for the one pass over its rows, decompressed."""
        if self._held is not None:
            file, self._held = self._held, None
            return file
        return self._open()

    def is_regular(self) -> bool:
        """Whether it can be opened more than once."""
        return self.path is not None and stat.S_ISREG(self.path.stat().st_mode)

    def may_wait(self) -> bool:
        """Whether reading may have to wait for another process. Known when it is open."""
        return self._waiting is not None

    def give_up(self) -> None:
        """End the reading of a pipe from another thread than the one that waits for it."""
        if self._waiting is not None:
            self._waiting.give_up()

    def facts(self) -> dict:
        """Describe it for the manifest; the hash is of the bytes as stored, and null when they were not all read."""
        facts = {"path": self.name, "sha256": None, "bytes": None}
        raw = self._raw
        if raw is not None and not raw.at_end and self.is_regular():  # the reader stopped early, as at `--limit`
            with self.path.open("rb") as file:
                raw = _HashingRaw(file)
                while raw.read(1 << 20):
                    pass
        if raw is not None and raw.at_end:
            facts.update(sha256=raw.sha256.hexdigest(), bytes=raw.num_bytes)
        return facts

    def _open(self) -> BinaryIO:
        if self.path is None and self._stdin is None and sys.stdin is None:
            raise ConfigError(f"the input is {STDIN}, and standard input is closed: send the rows to it or name a file")
        try:
            file = self._stdin or sys.stdin.buffer if self.path is None else self.path.open("rb")
        except OSError as error:
            raise ConfigError(f"{self.name} cannot be read: {error.strerror}") from None
        if self._waiting is None and _can_wait(file):
            self._waiting = _Waiting()
        self._raw = _HashingRaw(file, self._waiting)
        buffered = io.BufferedReader(self._raw, 1 << 16)
        if not self.is_gzip and not self._is_nameless:
            return buffered
        if self._start_of(buffered)[:2] == _GZIP_MAGIC:
            return io.BufferedReader(gzip.GzipFile(fileobj=buffered), 1 << 16)
        if self.is_gzip:
            buffered.close()
            raise ConfigError(f"{self.name} ends in .gz but is not gzip data: rename or recompress it")
        return buffered

    def _start_of(self, file: BinaryIO) -> bytes:
        try:
            return file.peek(_PEEK_BYTES)[:_PEEK_BYTES]
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"{self.name} cannot be read: {error}") from None

    def _check_start(self, file: BinaryIO) -> None:
        start = self._start_of(file)
        if start.startswith(_GZIP_MAGIC):
            raise ConfigError(f"{self.name} is gzip data: its name must end in .gz, behind what says how to read it")
        encoding = next((name for mark, name in _UTF16_OR_32 if start.startswith(mark)), None)
        if encoding is None and len(start) >= 2 and 0 in start[:2]:
            encoding = "UTF-16"  # without a mark: no JSON, YAML, CSV or text begins with a zero byte otherwise
        if encoding is not None:
            raise ConfigError(f"{self.name} is {encoding}: convert it to UTF-8, for instance with iconv -f {encoding}")


def _can_wait(file: BinaryIO) -> bool:
    try:
        return _is_stream(os.fstat(file.fileno()).st_mode)
    except OSError:  # it is not of the system: bytes in memory
        return False


def _is_pipe(path: Path) -> bool:
    try:
        return _is_stream(path.stat().st_mode)
    except OSError:
        return False


def _is_stream(mode: int) -> bool:
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)
