"""Stream raw rows out of files: one object for each row, with its physical line.

A row that cannot be read comes out as a row with a problem; it is never dropped and never stops the others. Lines end
at a line feed only (a carriage return before it is dropped), so that U+2028 or U+0085 inside a string splits nothing.
JSONL, CSV and text are streamed; JSON and YAML are read whole. Knows nothing of prompts.
"""

from __future__ import annotations

import csv
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from jobs import json_text, yaml_text
from jobs.byte_source import ByteSource
from nanovllm import ConfigError

_BOM = b"\xef\xbb\xbf"
_READ_ERRORS = (OSError, EOFError, zlib.error)


@dataclass(slots=True)
class RawRow:
    """One row as it stands in a file.

    Attributes:
        source: name of the file.
        line: physical line where it begins, from 1.
        value: what was read; with a problem, what could be read nevertheless, or None.
        problem: why the row cannot be used, as the end of a sentence that begins with the place.
        is_batch: whether its file is an OpenAI batch.
        is_cut: whether its file goes on behind it and cannot be read any further.
    """

    source: str
    line: int
    value: Any
    problem: str | None = None
    is_batch: bool = False
    is_cut: bool = False

    def place(self) -> str:
        """Name the row for people."""
        return f"{self.source}, line {self.line}"


class Reader(ABC):
    """Reads one file: `check` before the run, then `rows`, once."""

    def __init__(self, source: ByteSource):
        self.source = source

    def check(self) -> None:
        """Refuse the file as a whole before the run."""
        self.source.check()

    @abstractmethod
    def rows(self) -> Iterator[RawRow]:
        """Read the rows in order."""


class JsonlReader(Reader):
    """One JSON value on each line; blank lines are skipped."""

    def rows(self) -> Iterator[RawRow]:
        """Read the rows in order."""
        with self.source.open() as file:
            for line, text in _numbered_lines(file):
                if isinstance(text, str) and not text.strip(" \t\r\n"):
                    continue
                yield self._row(line, text)

    def _row(self, line: int, text: str | _Unreadable) -> RawRow:
        if isinstance(text, _Unreadable):
            return RawRow(self.source.name, line, None, text.reason, is_cut=text.is_cut)
        try:
            return RawRow(self.source.name, line, json_text.loads(text.rstrip("\r\n")))
        except json_text.JsonProblem as problem:
            return RawRow(self.source.name, line, problem.value, _with_column(problem))


class TextReader(Reader):
    """One prompt on each line; empty lines are skipped."""

    def rows(self) -> Iterator[RawRow]:
        """Read the rows in order."""
        with self.source.open() as file:
            for line, text in _numbered_lines(file):
                if isinstance(text, _Unreadable):
                    yield RawRow(self.source.name, line, None, text.reason, is_cut=text.is_cut)
                    continue
                text = text.removesuffix("\n").removesuffix("\r")
                if text:
                    yield RawRow(self.source.name, line, {"prompt": text})


class CsvReader(Reader):
    """Comma-separated values with a header; every value is text. Quoted values may span lines."""

    def check(self) -> None:
        """Refuse the file as a whole before the run."""
        super().check()
        if self.source.is_regular():
            with self.source.open() as file:
                self._header(_csv_reader(file))

    def rows(self) -> Iterator[RawRow]:
        """Read the rows in order."""
        name = self.source.name
        with self.source.open() as file:
            reader = _csv_reader(file)
            header = self._header(reader)
            while True:
                line = reader.line_num + 1
                try:
                    values = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield RawRow(name, line, None, f"is not CSV: {error}")
                    continue
                except _READ_ERRORS as error:
                    yield RawRow(name, line, None, _read_failure(error), is_cut=True)
                    return
                if values:
                    yield self._row(line, header, values)

    def _row(self, line: int, header: list[str], values: list[str]) -> RawRow:
        if len(values) != len(header):
            problem = f"has {len(values)} values where the header has {len(header)} columns"
            return RawRow(self.source.name, line, None, problem)
        for column, value in zip(header, values, strict=True):
            # the text was decoded with surrogateescape: a surrogate stands for a byte that is not UTF-8
            if json_text.find_lone_surrogate(value) is not None:
                return RawRow(self.source.name, line, None, f"is not valid UTF-8 in the column {column!r}")
        return RawRow(self.source.name, line, dict(zip(header, values, strict=True)))

    def _header(self, reader) -> list[str]:
        name = self.source.name
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise ConfigError(f"{name}, line 1 is not CSV: {error}") from None
        if not header or any(not column for column in header):
            raise ConfigError(f"{name}, line 1: the header must name every column, and is {header}")
        repeated = next((column for column in header if header.count(column) > 1), None)
        if repeated is not None:
            raise ConfigError(f"{name}, line 1: the header names the column {repeated!r} twice: rename one")
        return header


class _WholeFileReader(Reader):
    """Reads the file once, at the check where there is one, and keeps its rows."""

    def __init__(self, source: ByteSource):
        super().__init__(source)
        self._rows: list[RawRow] | None = None

    def check(self) -> None:
        """Refuse the file as a whole before the run."""
        super().check()
        self._rows = list(self._read())

    def rows(self) -> Iterator[RawRow]:
        """Read the rows in order."""
        return iter(self._read() if self._rows is None else self._rows)

    @abstractmethod
    def _read(self) -> Iterator[RawRow]:
        """Read the rows out of the file's text."""


class JsonReader(_WholeFileReader):
    """A list of rows, or one row, in a JSON file that is read whole."""

    def _read(self) -> Iterator[RawRow]:
        text = _whole_text(self.source)
        decoder = json_text.StrictDecoder()
        position = json_text.skip_blanks(text, 0)
        is_list = text[position : position + 1] == "["
        if is_list:
            position = json_text.skip_blanks(text, position + 1)
            if text[position : position + 1] == "]":
                self._expect_end(text, position + 1)
                return
        line, counted = 1, 0
        while True:
            line, counted = line + text.count("\n", counted, position), position
            row, position = self._item(decoder, text, position, line)
            yield row
            position = json_text.skip_blanks(text, position)
            if not is_list:
                break
            sign = text[position : position + 1]
            if sign not in (",", "]"):
                raise ConfigError(f"{self._place(text, position)} is not JSON: a comma or ] is missing")
            position = json_text.skip_blanks(text, position + 1)
            if sign == "]":
                break
        self._expect_end(text, position)

    def _item(self, decoder: json_text.StrictDecoder, text: str, position: int, line: int) -> tuple[RawRow, int]:
        try:
            value, end = decoder.decode(text, position)
            return RawRow(self.source.name, line, value), end
        except json_text.JsonProblem as problem:
            if problem.end is None:
                at = position if problem.position is None else problem.position
                raise ConfigError(f"{self._place(text, at)} {problem.reason}") from None
            return RawRow(self.source.name, line, problem.value, problem.reason), problem.end

    def _expect_end(self, text: str, position: int) -> None:
        if json_text.skip_blanks(text, position) != len(text):
            cure = "if each line is a row of its own, the file's name must end in .jsonl"
            raise ConfigError(f"{self._place(text, position)}: the file goes on behind its JSON value: {cure}")

    def _place(self, text: str, position: int) -> str:
        line = text.count("\n", 0, position) + 1
        return f"{self.source.name}, line {line}, column {position - text.rfind(chr(10), 0, position)}"


class YamlReader(_WholeFileReader):
    """A list of rows, or one document for each row, in a YAML file that is read whole."""

    def _read(self) -> Iterator[RawRow]:
        name = self.source.name
        try:
            for line, value in yaml_text.parse_items(_whole_text(self.source)):
                if isinstance(value, yaml_text.YamlProblem):
                    yield RawRow(name, line, None, f"cannot be used (line {value.line}: {value.reason})")
                elif json_text.is_too_deep(value):
                    yield RawRow(name, line, None, f"is nested deeper than {json_text.MAX_DEPTH} levels")
                else:
                    yield RawRow(name, line, value)
        except yaml_text.YamlProblem as problem:
            place = name if problem.line is None else f"{name}, line {problem.line}"
            raise ConfigError(f"{place}: {problem.reason}") from None


READERS = {
    ".jsonl": JsonlReader,
    ".json": JsonReader,
    ".yaml": YamlReader,
    ".yml": YamlReader,
    ".csv": CsvReader,
    ".txt": TextReader,
}


@dataclass(slots=True)
class _Unreadable:
    """A line that is no text, with the reason; `is_cut` where it is all that cannot be read."""

    reason: str
    is_cut: bool = False


def _numbered_lines(file: BinaryIO) -> Iterator[tuple[int, str | _Unreadable]]:
    """Give each line with its number; a read error is a last line of its own."""
    number = 0
    try:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(_BOM)
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                yield number, _Unreadable(f"is not valid UTF-8 at byte {error.start + 1} of the line")
    except _READ_ERRORS as error:
        yield number + 1, _Unreadable(_read_failure(error), is_cut=True)


def _read_failure(error: Exception) -> str:
    return f"and what follows cannot be read: {error}"


def _with_column(problem: json_text.JsonProblem) -> str:
    if problem.position is None:
        return problem.reason
    return f"{problem.reason} (column {problem.position + 1})"


def _csv_reader(file: BinaryIO):
    csv.field_size_limit(2**31 - 1)  # a whole article in one cell is ordinary here
    lines = (raw.removeprefix(_BOM) if number == 0 else raw for number, raw in enumerate(file))
    return csv.reader((raw.decode("utf-8", "surrogateescape") for raw in lines), strict=True)


def _whole_text(source: ByteSource) -> str:
    with source.open() as file:
        try:
            return file.read().removeprefix(_BOM).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{source.name} is not valid UTF-8 at byte {error.start + 1}") from None
        except _READ_ERRORS as error:
            raise ConfigError(f"{source.name} cannot be read: {error}") from None
