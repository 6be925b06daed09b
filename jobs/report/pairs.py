"""Two runs side by side: which results came out differently, and by how much the scores differ.

Evaluations are compared as `jobs.evaluation` compares them, by row id; its flips are shown here with their texts. Of
generations the outputs are compared, by id and sample. Memory holds no texts: 16 bytes for each result of the second
run, and what the comparison of evaluations needs.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from jobs.evaluation.comparison import MetricComparison, compare_runs
from jobs.report import charts
from jobs.report.formats import whole
from jobs.report.rows import ReportRow
from jobs.report.source import FinishedRun


@dataclass(frozen=True, slots=True)
class DifferenceLine:
    """A metric in both runs, and its difference on a scale with 0 at `zero`; None where there is no interval."""

    found: MetricComparison
    whisker: charts.Whisker | None
    zero: float | None


class RowIndex:
    """Finds the rows of a run by their keys."""

    def __init__(self, run: FinishedRun):
        self._run = run
        keys, offsets = array("Q"), array("q")
        for offset, row in run.placed_rows():
            keys.append(_digest(row.key))
            offsets.append(offset)
        order = np.argsort(np.frombuffer(keys, np.uint64) if keys else np.zeros(0, np.uint64), kind="stable")
        self._keys = np.array(keys, np.uint64)[order]
        self._offsets = np.array(offsets, np.int64)[order]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, key: str) -> ReportRow | None:
        """Give the first row with a key."""
        digest = np.uint64(_digest(key))
        place = int(np.searchsorted(self._keys, digest))
        if place == len(self._keys) or self._keys[place] != digest:
            return None
        rows = self._run.rows_at(int(self._offsets[place]))
        return next((row for row in rows if row.key == key), None)


class Comparison:
    """How run B differs from run A.

    Attributes:
        note: how many rows both have.
        warnings: what makes the comparison less than fair.
        lines: the metrics that both have; none unless both are evaluations.
        flips_title, flips_note: words over the list of flips.

    Raises:
        ConfigError: two evaluations that cannot be compared.
    """

    def __init__(self, a: FinishedRun, b: FinishedRun, num_rows: int | None):
        self._a, self._num_rows = a, num_rows
        self._index = RowIndex(b)
        self._metric: str | None = None
        self._flipped: set[str] | None = None
        self.lines: list[DifferenceLine] = []
        if a.metrics and b.metrics:
            found = compare_runs(a.folder, b.folder)
            self.lines = [_line(one) for one in found.metrics]
            self._metric = found.metrics[0].metric.name
            self._flipped = {str(flip.id) for flip in found.metrics[0].flips}
            self.warnings = [_sentence(warning, a.metrics) for warning in found.warnings]
            self.note = f"{whole(found.num_both)} rows are in both."
        else:
            num_pairs = sum(1 for _ in self._pairs())
            self.warnings = _warnings(a, b)
            self.note = f"{whole(num_pairs)} results are in both; B has {whole(len(self._index))}."
        num_flips = sum(1 for _ in self._flips())
        what = f"different {self._metric}" if self._metric else "different outputs"
        self.flips_title = f"Results with {what}: {whole(num_flips)}"
        self.flips_note = ""
        if num_rows is not None and num_flips > num_rows:
            left_out = whole(num_flips - num_rows)
            self.flips_note = f"The first {whole(num_rows)}; {left_out} are left out. All of them: --rows all."

    def flips(self) -> Iterator[tuple[ReportRow, ReportRow]]:
        """Give the pairs that came out differently, in input order, as far as they are shown."""
        return itertools.islice(self._flips(), self._num_rows)

    def _flips(self) -> Iterator[tuple[ReportRow, ReportRow]]:
        return (pair for pair in self._pairs() if self._differs(*pair))

    def _pairs(self) -> Iterator[tuple[ReportRow, ReportRow]]:
        for row in self._a.rows():
            if self._flipped is None or row.id in self._flipped:
                other = self._index.find(row.key)
                if other is not None:
                    yield row, other

    def _differs(self, a: ReportRow, b: ReportRow) -> bool:
        if self._metric is None:
            return (a.status, a.output) != (b.status, b.output)
        # of a row that flipped, the samples that made it flip
        scores = a.scores.get(self._metric), b.scores.get(self._metric)
        return None in scores or scores[0] != scores[1]


def _line(found: MetricComparison) -> DifferenceLine:
    values = found.difference.value, found.difference.low, found.difference.high
    if not all(map(math.isfinite, values)):
        return DifferenceLine(found, None, None)
    scale = charts.Scale(min(values[1], 0.0), max(values[2], 0.0))
    return DifferenceLine(found, scale.whisker(*values), round(100 * scale.share(0.0), 2))


def _sentence(warning: str, metrics: Collection[str]) -> str:
    is_name = warning.partition(":")[0] in metrics  # which keeps its letters
    return f"{warning if is_name else warning[:1].upper() + warning[1:]}."


def _warnings(a: FinishedRun, b: FinishedRun) -> list[str]:
    inputs = [[one.get("sha256") for one in run.manifest.get("input") or [] if isinstance(one, dict)] for run in (a, b)]
    return ["The input files of the two runs differ (by sha256)."] if inputs[0] != inputs[1] else []


def _digest(key: str) -> int:
    data = key.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
