"""The scores of a finished evaluation's rows, read back from its files for comparing.

Owns what a row adds to each metric: mostly its score; to a perplexity its log likelihood over its tokens. A row has one
score, the mean over its samples, as in `scores.json`. A hundred bytes or so of a row stay in memory, none of its texts.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jobs.evaluation.statistics import exp, linearized_ratio
from jobs.run_directory import RunDirectory, read_json
from nanovllm import ConfigError

# What the metrics of the task perplexity divide by.
_COUNTS = {"token_perplexity": "num_tokens", "word_perplexity": "num_words"}
_BITS = "bits_per_byte"


@dataclass(frozen=True, slots=True)
class Metric:
    """How the rows of an evaluation add up to a number.

    Attributes:
        name: its name.
        higher_is_better: how it compares.
        count: key of what is divided by; None for the mean of scores.
        is_choice: whether the log likelihood is that of the one choice, and counts as one.
        scale: "mean", "exp" or "bits".
        is_aggregate: whether the score of all rows together, as in `scores.json`, is not the mean of the rows' scores.
    """

    name: str
    higher_is_better: bool
    count: str | None = None
    is_choice: bool = False
    scale: str = "mean"
    is_aggregate: bool = False

    @property
    def is_mean(self) -> bool:
        """Whether it is the mean of the rows' scores."""
        return self.scale == "mean"

    def part(self, lines: list[dict[str, Any]]) -> tuple[float, float]:
        """Give what a row adds to the numerator and to the denominator; NaN for a row that does not count.

        Raises:
            KeyError, TypeError: the lines do not have the shape of an evaluation's.
        """
        first = lines[0]
        if first["finish_reason"] == "skipped":
            return math.nan, math.nan
        if first["error"] is not None:  # an unanswered question is a wrong one
            return (0.0, 1.0) if self.higher_is_better else (math.nan, math.nan)
        if self.is_choice:
            return -first["choices"][0]["logprob"], 1.0
        if self.count is not None:
            count = first[self.count]  # null for words and bytes of a text that was given as token ids
            return (math.nan, math.nan) if count is None else (-first["logprob"], float(count))
        return math.fsum(line["scores"][self.name] for line in lines) / len(lines), 1.0

    def value(self, ratio: float) -> float:
        """Give the metric from its sums' ratio, which is the mean score or nats for each unit."""
        if self.scale == "exp":
            return exp(ratio)
        return ratio / math.log(2) if self.scale == "bits" else ratio

    def values(self, totals: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Give a value for each row so that their mean is the metric, and the error of their mean is its error."""
        if self.is_mean:
            return totals
        ratio, values = linearized_ratio(totals, weights)
        slope = exp(ratio) if self.scale == "exp" else 1 / math.log(2)
        return self.value(ratio) + slope * (values - ratio)


@dataclass(slots=True)
class RowScores:
    """The rows of one evaluation, in order.

    Attributes:
        ids: their ids.
        groups: what rows that depend on each other share, None without.
        prompts, targets: a name for each row's prompt and target; None where the row failed before it had one.
        parts: for each metric what each row adds, two numbers a row.
    """

    ids: list[str] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)
    targets: list[bytes | None] = field(default_factory=list)
    parts: dict[str, array] = field(default_factory=dict)

    def columns(self, metric: str) -> np.ndarray:
        """Give what each row adds to a metric, [n, 2] float64, numerator and denominator."""
        return np.array(self.parts[metric], np.float64).reshape(-1, 2)


class Evaluation:
    """A finished evaluation on disk.

    Attributes:
        folder: its directory.
        scores: the content of `scores.json`.
        metrics: its metrics by name, the main one first.

    Raises:
        ConfigError: the folder holds no evaluation, or one that is not finished.
    """

    def __init__(self, folder: Path, scores: dict[str, Any] | None = None):
        directory = RunDirectory(folder)
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no directory: give the output directory of an evaluation")
        if scores is None:
            scores = read_json(directory.scores)
        if scores is None or not directory.results.exists():
            raise ConfigError(_refusal(directory))
        if not _is_whole(scores):
            raise ConfigError(f"{directory.scores} does not have the shape of our scores: run the evaluation again")
        self.folder = folder
        self.scores = scores
        self.metrics = {name: _metric(name, values, scores["task"]) for name, values in scores["metrics"].items()}
        self._results = directory.results

    @property
    def name(self) -> str:
        """Name of the job."""
        return str(self.scores.get("name") or self.folder.name)

    def read(self, names: list[str]) -> RowScores:
        """Read what the rows add to some metrics.

        Raises:
            ConfigError: the results are damaged.
        """
        found = RowScores(parts={name: array("d") for name in names})
        metrics = [self.metrics[name] for name in names]
        for number, lines in self._rows():
            try:
                first = lines[0]
                found.ids.append(_text(first["id"]))
                found.groups.append(first["group"])
                found.prompts.append(first["prompt_hash"])
                found.targets.append(_digest(first["target"]))
                for metric in metrics:
                    found.parts[metric.name].extend(metric.part(lines))
            except (KeyError, TypeError, IndexError) as error:
                what = f"lacks {error}" if isinstance(error, KeyError) else "holds values of other types"
                raise ConfigError(
                    f"{self._results}, line {number}: the row {what}, so no evaluation wrote it: do the run again"
                ) from None
        return found

    def _rows(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Give the number of the first line, and the lines, of each row."""
        lines: list[dict[str, Any]] = []
        start = 1
        with self._results.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = self._parse(raw, number)
                if lines and lines[0].get("index") != line.get("index"):
                    yield start, lines
                    lines, start = [], number
                lines.append(line)
        if lines:
            yield start, lines

    def _parse(self, raw: bytes, number: int) -> dict[str, Any]:
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict):
            raise ConfigError(
                f"{self._results}, line {number} is no JSON object: the file is damaged, do the run again"
            )
        return line


def _metric(name: str, values: dict[str, Any], task: str) -> Metric:
    higher_is_better = values.get("higher_is_better") is not False
    if task == "perplexity":
        scale = "bits" if name == _BITS else "exp"
        return Metric(name, higher_is_better, count=_COUNTS.get(name, "num_bytes"), scale=scale)
    if task == "score" and name == "perplexity":
        return Metric(name, higher_is_better, is_choice=True, scale="exp")
    return Metric(name, higher_is_better, is_aggregate=values.get("method") == "bootstrap")


def _is_whole(scores: dict[str, Any]) -> bool:
    metrics = scores.get("metrics")
    if not isinstance(scores.get("task"), str) or not isinstance(metrics, dict):
        return False
    return all(isinstance(values, dict) for values in metrics.values())


def _refusal(directory: RunDirectory) -> str:
    manifest = directory.read_manifest()
    folder = directory.path
    if manifest is None:
        return f"{folder} is not the directory of an evaluation: it has no scores.json and results.jsonl"
    if manifest.get("status") != "finished":
        return f"{folder} is not finished ({manifest.get('status')}): run its command again first"
    if not directory.results.exists():
        return f"{folder} has no results.jsonl any more: run its command again with --restart"
    return f"{folder} is a run without scores.json: only a job with an eval: section can be compared"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _digest(target: Any) -> bytes | None:
    if target is None:
        return None
    text = json.dumps(target, sort_keys=True)
    return hashlib.blake2b(text.encode("ascii"), digest_size=8).digest()
