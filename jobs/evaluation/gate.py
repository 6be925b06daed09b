"""`eval.gate`: conditions on the scores of a finished evaluation, and a sentence for each.

Owns their form and when they hold. A condition compares a metric with a number, or this run with an earlier one:

    gate:
      exact_match: ">= 0.30"
      f1: {bound: "> 0.5", confidence: 0.95}
      no_worse_than: {run: runs/baseline, metric: exact_match, margin: 0.01}

Without `confidence` the number itself decides. With it, the worse end of the interval of that confidence must pass.
"""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.evaluation.comparison import compare_evaluations
from jobs.evaluation.row_scores import Evaluation
from jobs.evaluation.score_text import number
from jobs.evaluation.statistics import (
    CONFIDENCE,
    clustered_wilson_interval,
    exp,
    normal_interval,
    wilson_interval,
)
from jobs.names import suggest
from jobs.paths import expand_variables
from nanovllm import ConfigError

NO_WORSE_THAN = "no_worse_than"

_OPERATORS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
_CONDITION = re.compile(r"\s*(>=|<=|>|<)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*", re.ASCII)
_BOUND_KEYS = ("bound", "confidence")
_RUN_KEYS = ("run", "metric", "margin", "confidence")

# Two numbers that differ by less are one: 0.30 - 0.31 must not fail a margin of 0.01 for its last binary digit.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a condition holds.

    Attributes:
        metric: what it is about.
        holds: whether it does.
        sentence: the same for people, with the numbers.
    """

    metric: str
    holds: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class _Bound:
    """A metric against a number."""

    metric: str
    sign: str
    number: float
    confidence: float | None
    place: str

    def check(self, scores: dict[str, Any], run: Path | None) -> Verdict:
        values = _metric(scores, self.metric, self.place)
        value = values.get("value")
        wanted = f"{self.sign} {self.number:.10g}"
        if value is None:
            return Verdict(self.metric, False, f"{self.metric} has no value, and {wanted} is wanted")
        said = f"{self.metric} is {_shown(value, self.number)}"
        if self.confidence is None:
            return self._verdict(value, said, wanted)
        wanted += f" with {100 * self.confidence:g} % confidence"
        interval = _interval(values, self.confidence)
        if interval is None:
            return self._verdict(math.nan, f"{said}, with no known error", wanted)
        low, high = interval
        end = low if self.sign.startswith(">") else high
        return self._verdict(end, f"{said}, between {_shown(low, self.number)} and {_shown(high, self.number)}", wanted)

    def _verdict(self, value: float, said: str, wanted: str) -> Verdict:
        holds = _OPERATORS[self.sign](value, self.number)
        if "=" in self.sign:
            holds = holds or math.isclose(value, self.number, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
        return Verdict(self.metric, holds, f"{said}: {wanted} {'holds' if holds else 'does not hold'}")


@dataclass(frozen=True, slots=True)
class _NoWorseThan:
    """A metric against the same metric of an earlier run, over the rows of both."""

    baseline: Evaluation
    metric: str
    margin: float
    confidence: float | None
    place: str

    def check(self, scores: dict[str, Any], run: Path | None) -> Verdict:
        _metric(scores, self.metric, self.place)
        if run is None:
            raise ValueError(f"{NO_WORSE_THAN} pairs rows: the directory of the run is needed")
        confidence = CONFIDENCE if self.confidence is None else self.confidence
        try:
            if run.resolve() == self.baseline.folder.resolve():
                raise ConfigError(f"{self.place}.run is this run itself: name an earlier one")
            found = compare_evaluations(self.baseline, Evaluation(run, scores), self.metric, confidence)
        except ConfigError as error:  # the scores are there by now: a gate that cannot be looked at does not hold
            return Verdict(self.metric, False, f"{self.metric} cannot be compared: {error}")
        (compared,) = found.metrics
        said = (
            f"{self.metric} is {number(compared.b)}, {_by(compared.gain, self.margin)} {number(compared.a)} of "
            f"{self.baseline.folder} over {compared.difference.n} common rows"
        )
        wanted = f"at most {self.margin:g} worse" if self.margin else "no worse"
        gain = compared.gain
        if self.confidence is not None:
            gain = compared.least_gain
            said += ", with no known error" if math.isnan(gain) else f", {_by(gain, self.margin)} it at worst"
            wanted += f" with {100 * confidence:g} % confidence"
        holds = gain >= -self.margin - _ROUNDING
        sentence = f"{said}: {wanted} {'holds' if holds else 'does not hold'}"
        return Verdict(self.metric, holds, "; ".join([sentence, *found.warnings]))


class Gate:
    """The conditions of an evaluation."""

    def __init__(self, conditions: list[_Bound | _NoWorseThan]):
        self._conditions = conditions

    @classmethod
    def from_settings(cls, mapping: Any, place: str, folders: Sequence[Path] = (Path(),)) -> Gate:
        """Read the conditions.

        Args:
            mapping: the value of `eval.gate`.
            place: names it in errors.
            folders: where the directory of a run is looked for, one after another.

        Raises:
            ConfigError: a condition has no right form, or names no finished evaluation with that metric.
        """
        if not isinstance(mapping, dict) or not mapping:
            raise ConfigError(
                f'{place} must be metrics with conditions, as in exact_match: ">= 0.30"; found {mapping!r}'
            )
        conditions: list[_Bound | _NoWorseThan] = []
        for key, value in mapping.items():
            if key != NO_WORSE_THAN:
                conditions.append(_read_bound(str(key), value, f"{place}.{key}"))
                continue
            items = value if isinstance(value, list) else [value]
            if not items:
                raise ConfigError(f"{place}.{key} is an empty list: name a run and a metric, or remove it")
            conditions += [_read_no_worse(item, f"{place}.{key}", folders) for item in items]
        return cls(conditions)

    def check(self, scores: dict[str, Any], run: Path | None = None) -> list[Verdict]:
        """Judge the scores of a finished evaluation.

        Args:
            scores: the content of `scores.json`.
            run: the directory with its results; only `no_worse_than` needs it.

        Raises:
            ConfigError: the scores lack a metric.
        """
        return [condition.check(scores, run) for condition in self._conditions]


def _shown(value: float, limit: float) -> str:
    """Write a number in four digits, or in more where these would hide on which side of a limit it lies."""
    text = number(value)
    return text if float(text) != limit or value == limit else f"{value:.10g}"


def _by(gain: float, margin: float) -> str:
    if abs(gain) <= _ROUNDING:
        return "the same as"
    return f"{_shown(abs(gain), margin)} {'better' if gain > 0 else 'worse'} than"


def _read_bound(metric: str, value: Any, place: str) -> _Bound:
    confidence = None
    if isinstance(value, dict):
        _refuse_unknown(value, _BOUND_KEYS, place)
        confidence = _read_confidence(value, place)
        value = value.get("bound")
    match = _CONDITION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(f'{place}: {value!r} is no condition: write a sign and a number in quotes, as in ">= 0.30"')
    return _Bound(metric, match.group(1), float(match.group(2)), confidence, place)


def _read_no_worse(value: Any, place: str, folders: Sequence[Path]) -> _NoWorseThan:
    if not isinstance(value, dict) or not isinstance(value.get("run"), str) or not isinstance(value.get("metric"), str):
        raise ConfigError(
            f"{place}: expected a run's directory and a metric, as in {{run: runs/baseline, metric: exact_match, "
            f"margin: 0.01}}; found {value!r}"
        )
    _refuse_unknown(value, _RUN_KEYS, place)
    margin = value.get("margin", 0.0)
    if not _is_number(margin) or margin < 0:
        raise ConfigError(f"{place}.margin is {margin!r}: expected how much worse is allowed, a number of at least 0")
    baseline = _baseline(value["run"], f"{place}.run", folders)
    metric = value["metric"]
    if metric not in baseline.metrics:
        raise ConfigError(
            f"{place}.metric: {baseline.folder} has no metric {metric!r}: {suggest(metric, baseline.metrics)}"
        )
    return _NoWorseThan(baseline, metric, float(margin), _read_confidence(value, place), place)


def _baseline(text: str, place: str, folders: Sequence[Path]) -> Evaluation:
    try:
        return Evaluation(_find_run(text, place, folders))
    except ConfigError as error:
        raise ConfigError(str(error) if place in str(error) else f"{place}: {error}") from None


def _find_run(text: str, place: str, folders: Sequence[Path]) -> Path:
    path = os.path.expanduser(expand_variables(text, place))  # noqa: PTH111  (what stands there may be no path yet)
    for folder in folders:
        if (folder / path).is_dir():
            return folder / path
    looked = " and ".join(str(folder.absolute()) for folder in folders)
    raise ConfigError(f"{place}: there is no directory {text!r} (looked in {looked})")


def _read_confidence(mapping: dict[str, Any], place: str) -> float | None:
    confidence = mapping.get("confidence")
    if confidence is not None and (not _is_number(confidence) or not 0 < confidence < 1):
        raise ConfigError(f"{place}.confidence is {confidence!r}: expected a number between 0 and 1, such as 0.95")
    return confidence


def _refuse_unknown(mapping: dict[str, Any], known: tuple[str, ...], place: str) -> None:
    for key in mapping:
        if key not in known:
            raise ConfigError(f"{place}: unknown key {key!r}: {suggest(str(key), known)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _metric(scores: dict[str, Any], metric: str, place: str) -> dict[str, Any]:
    metrics = scores["metrics"]
    if metric not in metrics:
        known = f"the scores have {', '.join(metrics)}" if metrics else "the scores have no metrics"
        raise ConfigError(f"{place}: there is no metric {metric!r}; {known}")
    return metrics[metric]


def _interval(values: dict[str, Any], confidence: float) -> tuple[float, float] | None:
    """Give the interval of a score; None when nothing is known of its error."""
    if values.get("low") is None or values.get("high") is None:
        return None
    if math.isclose(confidence, CONFIDENCE):
        return values["low"], values["high"]
    value, stderr, method, num_groups = (values.get(key) for key in ("value", "stderr", "method", "num_groups"))
    if method == "wilson":
        return wilson_interval(value, values["n"], confidence)
    if method in ("clustered", "clustered wilson") and num_groups is None:
        return None  # scores of an earlier version, which does not tell
    if method == "clustered wilson":
        return clustered_wilson_interval(value, stderr, num_groups, confidence)
    if method == "delta":  # the interval is that of the logarithm
        low, high = normal_interval(math.log(value), stderr / value, confidence, num_groups)
        return exp(low), exp(high)
    return normal_interval(value, stderr, confidence, num_groups)
