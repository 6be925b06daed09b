"""`scores.json`: what an evaluation came to, made from its result lines alone.

Owns the aggregation: rows in input order, a metric of a row is the mean over its lines, an error row is a wrong answer.
Holds a few floats a row; only scorers whose score of all rows is no mean keep the texts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jobs import json_text
from jobs.evaluation.metrics import metric_names, scorers_of
from jobs.evaluation.scorers import Scorer
from jobs.evaluation.settings import EvalSettings
from jobs.evaluation.statistics import (
    Estimate,
    bootstrap,
    estimate_mean,
    estimate_perplexity,
    linearized_ratio,
)
from jobs.job_file import Job

SCHEMA_VERSION = 1
_TEXT_KEYS = ("logprob", "num_tokens", "num_words", "num_bytes")
_NO_GROUP = -1
_NUM_CORPUS_RESAMPLES = 100
"""Of scores that are costly to compute, such as BLEU of a whole corpus."""


class ScoreBook:
    """Collects the rows of one evaluation and makes their scores."""

    def __init__(self, settings: EvalSettings):
        self._settings = settings
        self._metrics = metric_names(settings)
        self._corpus = [scorer for scorer in scorers_of(settings) if scorer.has_corpus_score]
        self._values = {name: array("d") for name in self._metrics}
        self._groups = array("q")
        self._group_numbers: dict[str, int] = {}
        self._likelihoods = array("d")
        self._texts: dict[int, tuple[list[str | None], Any]] = {}  # answers and target by place in the other columns
        self._prompts, self._targets = hashlib.sha256(), hashlib.sha256()
        self.rows = {"total": 0, "scored": 0, "errors": 0, "skipped": 0}

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Take the lines of one row."""
        first = lines[0]
        self._prompts.update(f"{first['prompt_hash']}\n".encode())
        self._targets.update(json_text.dumps(first["target"]).encode() + b"\n")
        status = "skipped" if first["finish_reason"] == "skipped" else "errors" if first["error"] else "scored"
        self.rows["total"] += 1
        self.rows[status] += 1
        if status == "skipped":
            return
        self._groups.append(self._group_number(first["group"]))
        for name, values in self._values.items():
            values.append(self._value(name, lines, status))
        if self._settings.task == "perplexity":
            self._likelihoods.extend(math.nan if first.get(key) is None else first[key] for key in _TEXT_KEYS)
        if self._corpus and status == "scored":
            answers = [first["voted"]] if self._settings.vote else [line["extracted"] for line in lines]
            self._texts[len(self._groups) - 1] = answers, first["target"]

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Give each metric with its error bars."""
        everything = np.ones(len(self._groups), bool)
        clusters = np.frombuffer(self._groups, np.int64) if self._group_numbers else None
        return {name: self._entry(name, everything, clusters) for name in self._metrics}

    def groups(self) -> dict[str, dict[str, Any]]:
        """Give each group's metrics."""
        numbers = np.frombuffer(self._groups, np.int64) if self._groups else np.zeros(0, np.int64)
        return {
            group: {name: self._entry(name, numbers == number, None) for name in self._metrics}
            for group, number in sorted(self._group_numbers.items())
        }

    def hashes(self) -> dict[str, str]:
        """Name the prompts and the targets."""
        return {"prompts": self._prompts.hexdigest(), "targets": self._targets.hexdigest()}

    def _group_number(self, group: str | None) -> int:
        if group is None:
            return _NO_GROUP - len(self._groups)  # a row of which it is not known is a group of its own
        return self._group_numbers.setdefault(group, len(self._group_numbers))

    def _value(self, name: str, lines: list[dict[str, Any]], status: str) -> float:
        if status != "scored":
            return 0.0 if self._metrics[name] else math.nan
        if self._settings.task == "score" and name == "perplexity":
            return lines[0]["choices"][0]["logprob"]
        if self._settings.task == "perplexity":
            return math.nan
        return math.fsum(line["scores"][name] for line in lines) / len(lines)

    def _entry(self, name: str, rows: np.ndarray, clusters: np.ndarray | None) -> dict[str, Any]:
        estimate = self._estimate(name, rows, clusters)
        values = {key: _finite(getattr(estimate, key)) for key in ("value", "stderr", "low", "high")}
        entry = {**values, "n": estimate.n, "method": estimate.method, "higher_is_better": self._metrics[name]}
        return entry if estimate.num_clusters is None else {**entry, "num_groups": estimate.num_clusters}

    def _estimate(self, name: str, rows: np.ndarray, clusters: np.ndarray | None) -> Estimate:
        if self._settings.task == "perplexity":
            return self._of_texts(name, rows, clusters)
        values = np.frombuffer(self._values[name], np.float64)[rows] if self._groups else np.zeros(0)
        is_known = ~np.isnan(values)
        values = values[is_known]
        members = None if clusters is None else clusters[rows][is_known]
        if self._settings.task == "score" and name == "perplexity":
            return estimate_perplexity(values, np.ones(len(values)), members)
        corpus = next((scorer for scorer in self._corpus if scorer.name == name), None)
        if corpus is not None and any(rows[place] for place in self._texts):
            return self._of_corpus(corpus, rows, clusters)
        return estimate_mean(values, members)

    def _of_texts(self, name: str, rows: np.ndarray, clusters: np.ndarray | None) -> Estimate:
        table = np.frombuffer(self._likelihoods, np.float64) if self._likelihoods else np.zeros(0)
        column = {"token_perplexity": 1, "word_perplexity": 2}.get(name, 3)
        table = table.reshape(-1, len(_TEXT_KEYS))[rows][:, [0, column]]
        is_known = ~np.isnan(table).any(axis=1)  # a text that was given as token ids has no words and no bytes
        logprobs, counts = table[is_known].T
        members = None if clusters is None else clusters[rows][is_known]
        if name != "bits_per_byte":
            return estimate_perplexity(logprobs, counts, members)
        _, nats = linearized_ratio(-logprobs, counts)
        return estimate_mean(nats / math.log(2), members)

    def _of_corpus(self, scorer: Scorer, rows: np.ndarray, clusters: np.ndarray | None) -> Estimate:
        """Score rows together, all samples of each; whole groups are drawn where rows have groups."""
        units: dict[int, list[tuple[str | None, Any]]] = {}
        places = [place for place in self._texts if rows[place]]
        for place in places:
            answers, target = self._texts[place]
            pairs = [(answer, target) for answer in answers]
            units.setdefault(place if clusters is None else int(clusters[place]), []).extend(pairs)
        drawn_from = list(units.values())

        def statistic(drawn: np.ndarray) -> float:
            answers, targets = zip(*(pair for i in drawn for pair in drawn_from[i]), strict=True)
            return scorer.corpus(list(answers), list(targets))

        found = bootstrap(np.arange(len(drawn_from)), statistic, num=_NUM_CORPUS_RESAMPLES)
        num_clusters = len(units) if len(units) < len(places) else None
        return dataclasses.replace(found, n=len(places), num_clusters=num_clusters)


def make_scores(job: Job, results: Path, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """Make the scores of an evaluation from its results.

    Args:
        job: the job.
        results: the file of its result lines.
        inputs: the input files with their sha256.
    """
    book = ScoreBook(job.eval)
    for lines in rows_of(results):
        book.add(lines)
    settings = job.eval.as_json()
    del settings["gate"]  # a verdict on the scores, and no part of them
    return {
        "schema_version": SCHEMA_VERSION,
        "name": job.name,
        "task": job.eval.task,
        "model": job.model,
        "rows": book.rows,
        "metrics": book.metrics(),
        "groups": book.groups(),
        "hashes": {"data": _data_hash(inputs), **book.hashes()},
        "eval": settings,
    }


def rows_of(results: Path) -> Iterator[list[dict[str, Any]]]:
    """Give the lines of each row, in order."""
    lines: list[dict[str, Any]] = []
    with results.open("rb") as file:
        for raw in file:
            line = json.loads(raw)
            if lines and lines[0]["index"] != line["index"]:
                yield lines
                lines = []
            lines.append(line)
    if lines:
        yield lines


def _data_hash(inputs: list[dict[str, Any]]) -> str | None:
    """Name the data: the sha256 of the one input, or of the list of several inputs' sha256."""
    hashes = [one["sha256"] for one in inputs]
    if None in hashes:
        return None
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
