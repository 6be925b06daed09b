"""The rows of a job, out of all its input files in order.

Owns the order of the files and what kind of rows a file holds. Streams: it holds one row at a time, except for rows
that cannot be read at the beginning of a file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jobs.byte_source import ByteSource
from jobs.job_file import Job
from jobs.openai_batch.calls import is_batch_line
from jobs.paths import STDIN
from jobs.readers import READERS, RawRow
from nanovllm import ConfigError

# Counting the rows beforehand reads the files once more; above this size the bar goes without a total.
_COUNT_UP_TO_BYTES = 64 << 20
# Unreadable rows at the beginning of a file that are held back until a readable one shows what the file is.
_MAX_UNDECIDED = 1000


class RowSource:
    """All input files of a job.

    Attributes:
        paths: the files, `-` for standard input.

    Args:
        paths: the files.
        stdin: what `-` reads, sys.stdin without it.
        is_batch: whether all files are OpenAI batches; None lets the first readable row of each file decide.
    """

    def __init__(self, paths: list[str], stdin: BinaryIO | None = None, is_batch: bool | None = None):
        self.paths = paths
        self._is_batch = is_batch
        self._sources = [ByteSource(None if path == STDIN else Path(path), stdin) for path in paths]
        self._readers = [_reader(source) for source in self._sources]

    def check(self) -> None:
        """Refuse unusable files before a model is loaded. Raises ConfigError."""
        for reader in self._readers:
            reader.check()

    def rows(self, limit: int | None = None) -> Iterator[RawRow]:
        """Read the rows in order, the first `limit` of them. May be called once."""
        left = limit
        for reader in self._readers:
            for row in self._marked(reader.rows()):
                if left == 0:
                    return
                yield row
                left = None if left is None else left - 1

    def _marked(self, rows: Iterator[RawRow]) -> Iterator[RawRow]:
        """Mark the rows of one file as lines of a batch if they are."""
        undecided = []
        is_batch = self._is_batch
        for row in rows if is_batch is None else ():
            undecided.append(row)
            if isinstance(row.value, dict) or len(undecided) == _MAX_UNDECIDED:
                is_batch = is_batch_line(row.value)
                break
        for row in itertools.chain(undecided, rows):
            row.is_batch = bool(is_batch)
            yield row

    def count(self) -> int | None:
        """Count the rows if that is cheap; None where it is not."""
        if not all(source.is_regular() and not source.is_gzip for source in self._sources):
            return None
        if sum(source.path.stat().st_size for source in self._sources) > _COUNT_UP_TO_BYTES:
            return None
        return sum(sum(1 for _ in _reader(ByteSource(source.path)).rows()) for source in self._sources)

    def may_wait(self) -> bool:
        """Whether reading rows may have to wait for another process. Known after `check`."""
        return any(source.may_wait() for source in self._sources)

    def give_up(self) -> None:
        """End the reading of rows in another thread soon."""
        for source in self._sources:
            source.give_up()

    def facts(self) -> list[dict]:
        """Describe the files for the manifest."""
        return [source.facts() for source in self._sources]


def row_source(job: Job, stdin: BinaryIO | None = None) -> RowSource:
    """Open the rows of a job."""
    if job.eval is not None and job.eval.whole_file:
        from jobs.evaluation.whole_files import WholeFiles

        return WholeFiles(list(job.inputs), stdin)
    return RowSource(list(job.inputs), stdin, is_batch=True if job.input_format == "openai_batch" else None)


def _reader(source: ByteSource):
    reader = READERS.get(source.suffix)
    if reader is None:
        kinds = " ".join(READERS)
        kind = f"files named {source.suffix!r} are" if source.suffix else "a file whose name has no ending is"
        raise ConfigError(f"{source.name}: {kind} not read: use one of {kinds}, each also .gz; - is standard input")
    return reader(source)
