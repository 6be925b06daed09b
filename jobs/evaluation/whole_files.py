"""Input files that are one row each: whole texts for perplexity.

Stands in for `jobs.inputs.RowSource`. A file is in memory only while its text goes to the engine.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jobs.byte_source import ByteSource
from jobs.paths import STDIN
from jobs.readers import RawRow
from nanovllm import ConfigError

_SUFFIXES = ("", ".txt", ".text", ".md")


class WholeFiles:
    """The texts of a job, a row for each file with the columns `prompt` and `file`.

    Attributes:
        paths: the files, `-` for standard input.
    """

    def __init__(self, paths: list[str], stdin: BinaryIO | None = None):
        self.paths = paths
        self._sources = [ByteSource(None if path == STDIN else Path(path), stdin) for path in paths]

    def check(self) -> None:
        """Refuse unusable files before a model is loaded. Raises ConfigError."""
        for source in self._sources:
            if source.path is not None and source.suffix not in _SUFFIXES:
                raise ConfigError(f"{source.name}: eval.whole_file reads texts: name a .txt file, also .gz")
            source.check()

    def rows(self, limit: int | None = None) -> Iterator[RawRow]:
        """Read the texts in order, the first `limit` of them. May be called once."""
        for source in self._sources[:limit]:
            yield _read(source)

    def count(self) -> int:
        """Count the rows."""
        return len(self._sources)

    def may_wait(self) -> bool:
        """Whether it is worth asking for other work between rows: not with a few long texts."""
        return False

    def facts(self) -> list[dict]:
        """Describe the files for the manifest."""
        return [source.facts() for source in self._sources]


def _read(source: ByteSource) -> RawRow:
    try:
        with source.open() as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return RawRow(source.name, 1, None, f"is not valid UTF-8 at byte {error.start + 1}")
    except (OSError, EOFError, zlib.error) as error:
        return RawRow(source.name, 1, None, f"cannot be read: {error}", is_cut=True)
    return RawRow(source.name, 1, {"prompt": text, "file": source.name})
