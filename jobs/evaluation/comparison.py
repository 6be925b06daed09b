"""Two evaluations of the same rows: by how much does B differ from A, is it chance, and which rows flipped.

Owns the pairing, by row id, and what makes a comparison less than fair. The tests are those of `paired`.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.evaluation.paired import PairedDifference, paired_difference
from jobs.evaluation.row_scores import Evaluation, Metric, RowScores
from jobs.evaluation.statistics import CONFIDENCE
from jobs.names import suggest
from nanovllm import ConfigError

# What may differ in the settings of two evaluations: it does not touch the scores, or shows in the prompts' hashes.
_HARMLESS = ("gate", "format", "allow_code", "few_shot", "description", "gen_prefix")


@dataclass(frozen=True, slots=True)
class Flip:
    """A row that came out differently: its scores in both runs."""

    id: str
    a: float
    b: float
    is_win: bool


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """One metric in both runs, over the rows that both have.

    Attributes:
        metric: the metric.
        a, b: its value in each.
        difference: b - a with its tests.
        wins, losses, ties: rows in which B is better, worse, the same.
        flips: the rows that differ, those that differ most first.
    """

    metric: Metric
    a: float
    b: float
    difference: PairedDifference
    wins: int
    losses: int
    ties: int
    flips: list[Flip]

    @property
    def gain(self) -> float:
        """By how much B is better; negative where it is worse."""
        return self.difference.value if self.metric.higher_is_better else -self.difference.value

    @property
    def least_gain(self) -> float:
        """The worse end of the interval of `gain`."""
        return self.difference.low if self.metric.higher_is_better else -self.difference.high


@dataclass(frozen=True, slots=True)
class Comparison:
    """How evaluation B differs from evaluation A.

    Attributes:
        a, b: the evaluations.
        num_both, num_only_a, num_only_b: rows by where they are.
        metrics: the metrics, the main one first.
        warnings: what makes the comparison less than fair, a sentence each.
    """

    a: Evaluation
    b: Evaluation
    num_both: int
    num_only_a: int
    num_only_b: int
    metrics: list[MetricComparison]
    warnings: list[str]


def compare_runs(folder_a: Path, folder_b: Path, metric: str | None = None) -> Comparison:
    """Compare two finished evaluations.

    Args:
        folder_a: directory of A.
        folder_b: directory of B.
        metric: the one to compare; by default all that both have.

    Raises:
        ConfigError: a directory holds no finished evaluation, or they have no metric or no row in common.
    """
    return compare_evaluations(Evaluation(folder_a), Evaluation(folder_b), metric)


def compare_evaluations(
    a: Evaluation, b: Evaluation, metric: str | None = None, confidence: float = CONFIDENCE
) -> Comparison:
    """Compare two evaluations. As `compare_runs`; `confidence` is that of the intervals."""
    names = _shared_metrics(a, b, metric)
    rows_a, rows_b = a.read(names), b.read(names)
    for evaluation, rows in ((a, rows_a), (b, rows_b)):
        _refuse_repeats(evaluation, rows)
    places = {row_id: i for i, row_id in enumerate(rows_b.ids)}
    pairs = [(i, places[row_id]) for i, row_id in enumerate(rows_a.ids) if row_id in places]
    if not pairs:
        raise ConfigError(f"{a.folder} and {b.folder} have no row id in common: compare runs over the same data")
    at_a, at_b = (np.array(column, np.intp) for column in zip(*pairs, strict=True))
    compared = [_compare(a.metrics[name], rows_a, rows_b, at_a, at_b, confidence) for name in names]
    counts = len(pairs), len(rows_a.ids) - len(pairs), len(rows_b.ids) - len(pairs)
    warnings = [*_row_warnings(rows_a, rows_b, pairs), *_run_warnings(a, b, metric), *_missing(a, b, *counts[1:])]
    for one in compared:
        left_out = counts[0] - one.difference.n
        if left_out:
            warnings.append(f"{one.metric.name}: {left_out} rows have no score in one of the runs and are left out")
        if one.metric.is_aggregate:
            warnings.append(
                f"{one.metric.name}: the means of the rows' scores are compared, not the score of all rows together"
            )
    return Comparison(a, b, *counts, compared, warnings)


def _shared_metrics(a: Evaluation, b: Evaluation, metric: str | None) -> list[str]:
    for evaluation in (a, b):
        if not evaluation.metrics:
            raise ConfigError(f"{evaluation.folder} has no metrics: its task scores nothing that could be compared")
        if metric is not None and metric not in evaluation.metrics:
            raise ConfigError(f"{evaluation.folder} has no metric {metric!r}: {suggest(metric, evaluation.metrics)}")
    if a.scores["task"] != b.scores["task"]:
        raise ConfigError(
            f"the tasks differ: {a.folder} is {a.scores['task']}, {b.folder} is {b.scores['task']}; their metrics do "
            "not measure the same thing"
        )
    names = [metric] if metric is not None else [name for name in a.metrics if name in b.metrics]
    if not names:
        raise ConfigError(
            f"the metrics differ: {a.folder} has {', '.join(a.metrics)}; {b.folder} has {', '.join(b.metrics)}"
        )
    for name in names:
        if a.metrics[name].higher_is_better != b.metrics[name].higher_is_better:
            raise ConfigError(f"the metric {name} is better when higher in one run and when lower in the other")
    return names


def _refuse_repeats(evaluation: Evaluation, rows: RowScores) -> None:
    seen: set[str] = set()
    for row_id in rows.ids:
        if row_id in seen:
            raise ConfigError(f"{evaluation.folder} has two rows with the id {row_id!r}: rows are paired by their id")
        seen.add(row_id)


def _compare(
    metric: Metric, rows_a: RowScores, rows_b: RowScores, at_a: np.ndarray, at_b: np.ndarray, confidence: float
) -> MetricComparison:
    parts_a, parts_b = rows_a.columns(metric.name)[at_a], rows_b.columns(metric.name)[at_b]
    is_known = ~np.isnan(parts_a[:, 0] + parts_b[:, 0])
    parts_a, parts_b, at_a = parts_a[is_known], parts_b[is_known], at_a[is_known]
    if not len(at_a):
        raise ConfigError(f"no row has a score of {metric.name} in both runs: there is nothing to compare")
    with np.errstate(all="ignore"):  # a text without tokens, or one beyond double precision
        values_a, values_b = metric.values(*parts_a.T), metric.values(*parts_b.T)
        scores_a, scores_b = parts_a[:, 0] / parts_a[:, 1], parts_b[:, 0] / parts_b[:, 1]
    if not (np.isfinite(values_a).all() and np.isfinite(values_b).all()):
        raise ConfigError(f"{metric.name} is not a finite number in both runs: it cannot be compared")
    difference = paired_difference(values_a, values_b, _clusters(rows_a, at_a), confidence)
    gains = scores_b - scores_a if metric.higher_is_better else scores_a - scores_b
    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    order = np.argsort(-np.abs(gains), kind="stable")[: wins + losses]
    flips = [
        Flip(rows_a.ids[at_a[i]], metric.value(scores_a[i]), metric.value(scores_b[i]), bool(gains[i] > 0))
        for i in order.tolist()
    ]
    return MetricComparison(
        metric, float(values_a.mean()), float(values_b.mean()), difference, wins, losses, len(gains) - wins - losses,
        flips,
    )  # fmt: skip


def _clusters(rows: RowScores, places: np.ndarray) -> list[Hashable] | None:
    """Give the groups of rows; a row without one is a group of its own."""
    groups = [rows.groups[i] for i in places.tolist()]
    if all(group is None for group in groups):
        return None
    return [("", i) if group is None else group for i, group in enumerate(groups)]


def _row_warnings(a: RowScores, b: RowScores, pairs: list[tuple[int, int]]) -> list[str]:
    warnings = []
    for what, names_a, names_b in (("prompts", a.prompts, b.prompts), ("targets", a.targets, b.targets)):
        num = sum(names_a[i] != names_b[j] and None not in (names_a[i], names_b[j]) for i, j in pairs)
        if num:
            warnings.append(f"the {what} differ in {num} of {len(pairs)} rows")
    return warnings


def _run_warnings(a: Evaluation, b: Evaluation, metric: str | None) -> list[str]:
    warnings = []
    data = [(one.scores.get("hashes") or {}).get("data") for one in (a, b)]
    if all(data) and data[0] != data[1]:
        warnings.append("the input data of the two runs differ (by hash)")
    settings: list[dict[str, Any]] = [one.scores.get("eval") or {} for one in (a, b)]
    keys = sorted(set(settings[0]) | set(settings[1]))
    differing = [key for key in keys if settings[0].get(key) != settings[1].get(key) and key not in _HARMLESS]
    if differing:
        warnings.append(f"the settings of eval differ: {', '.join(differing)}")
    unshared = [name for name in {**a.metrics, **b.metrics} if (name in a.metrics) != (name in b.metrics)]
    if metric is None and unshared:
        warnings.append(f"only one of the runs has the metrics {', '.join(unshared)}; they are left out")
    return warnings


def _missing(a: Evaluation, b: Evaluation, num_only_a: int, num_only_b: int) -> list[str]:
    if not num_only_a and not num_only_b:
        return []
    where = f"{num_only_a} are only in {a.folder}, {num_only_b} only in {b.folder}"
    return [f"rows are missing: {where}; the rows of both are compared"]
