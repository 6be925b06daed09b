"""The files of one finished run, opened for reading.

Refuses what is no run or has not ended, in a sentence. Streams the results: one line is in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.report.rows import ReportRow, RowReader
from jobs.run_directory import RunDirectory, read_json
from nanovllm import ConfigError

SCORES = "scores.json"


class FinishedRun:
    """A run whose results are whole.

    Attributes:
        folder: its directory.
        manifest: `manifest.json`.
        scores: `scores.json` of an evaluation, else None.
        series: columns of `status.json` that tell how the run went over time; empty when none were recorded.

    Raises:
        ConfigError: the folder holds no run, or one that is not finished.
    """

    def __init__(self, folder: Path):
        directory = RunDirectory(folder)
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no directory: give the output directory of a run")
        manifest = directory.read_manifest()
        if manifest is None:
            raise ConfigError(f"{folder} is not the directory of a run: it has no manifest.json of one")
        if manifest.get("status") != "finished" or not directory.results.exists():
            raise ConfigError(f"{folder} is not finished ({_state(directory, manifest)}): run its command again first")
        self.folder = folder
        self.manifest = manifest
        self.results = directory.results
        self.scores = read_json(folder / SCORES)
        self.series = _series((read_json(directory.status) or {}).get("series"))
        prompt = section(section(manifest, "job"), "prompt")
        self._reader = RowReader(prompt.get("template") if isinstance(prompt.get("template"), str) else None)

    @property
    def name(self) -> str:
        """Name of the job."""
        return str(section(self.manifest, "job").get("name") or self.folder.name)

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """The scores with their intervals by name, the main one first; empty for a generation run."""
        metrics = section(self.scores or {}, "metrics")
        return {name: values for name, values in metrics.items() if isinstance(values, dict)}

    def rows(self) -> Iterator[ReportRow]:
        """Give all rows in input order.

        Raises:
            ConfigError: a line is damaged.
        """
        for _, row in self.placed_rows():
            yield row

    def placed_rows(self) -> Iterator[tuple[int, ReportRow]]:
        """Give all rows with the offset of their line in the file."""
        offset = 0
        with self.results.open("rb") as file:
            for number, line in enumerate(file):
                for row in self._parse(line, number):
                    yield offset, row
                offset += len(line)

    def rows_at(self, offset: int) -> list[ReportRow]:
        """Give the rows of the line at an offset."""
        with self.results.open("rb") as file:
            file.seek(offset)
            return list(self._parse(file.readline(), 0))

    def _parse(self, line: bytes, number: int) -> Iterator[ReportRow]:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise ConfigError(f"{self.results}, line {number + 1} is no JSON object: the file is damaged, do it again")
        yield from self._reader.read(values, number)


def section(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Give an object inside an object; an empty one when it is missing or something else."""
    inner = values.get(name)
    return inner if isinstance(inner, dict) else {}


def _state(directory: RunDirectory, manifest: dict[str, Any]) -> str:
    done = section(manifest, "counts").get("rows", 0)
    status = manifest.get("status")
    return f"{status}, {done} rows done" if status != "finished" else "results.jsonl is missing"


def _series(series: Any) -> dict[str, list[float]]:
    names = ("seconds", "rows", "completion_tokens")
    if not isinstance(series, dict) or not all(isinstance(series.get(name), list) for name in names):
        return {}
    columns = {name: series[name] for name in names}
    if len({len(column) for column in columns.values()}) != 1:
        return {}
    is_numeric = all(isinstance(value, int | float) for column in columns.values() for value in column)
    return columns if is_numeric else {}
