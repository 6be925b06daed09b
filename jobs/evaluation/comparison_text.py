"""A comparison as a screen for people, and as JSON for programs. Owns the words; computes nothing."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from typing import Any

from jobs.evaluation.comparison import Comparison, Flip, MetricComparison
from jobs.evaluation.row_scores import Evaluation
from jobs.evaluation.score_text import number

SCHEMA_VERSION = 1

_HEAD = ("metric", "A", "B", "B - A", "95 % interval", "p", "test", "wins", "losses", "ties")
_MAX_ID_CHARS = 30
_WIDTH = 100


def describe(comparison: Comparison, num_flips: int | None) -> str:
    """Write a comparison for people.

    Args:
        comparison: the comparison.
        num_flips: most flipped rows to name; None is all.
    """
    lines = [f"{letter}: {_title(run)}" for letter, run in (("A", comparison.a), ("B", comparison.b))]
    lines.append(f"{_rows(comparison.num_both)} in both")
    lines += [f"warning: {warning}" for warning in comparison.warnings]
    lines += ["", *_table(comparison.metrics), "", *_verdict(comparison.metrics[0])]
    lines += _flip_lines(comparison.metrics[0], num_flips)
    return "\n".join(lines)


def as_json(comparison: Comparison, num_flips: int | None) -> dict[str, Any]:
    """Give a comparison as JSON values; what is not known is null."""
    return {
        "schema_version": SCHEMA_VERSION,
        "a": _run_as_json(comparison.a),
        "b": _run_as_json(comparison.b),
        "rows": {
            "both": comparison.num_both,
            "only_a": comparison.num_only_a,
            "only_b": comparison.num_only_b,
        },
        "warnings": comparison.warnings,
        "metrics": {one.metric.name: _metric_as_json(one, num_flips) for one in comparison.metrics},
    }


def _title(run: Evaluation) -> str:
    return f"{run.folder} ({run.name}, model {run.scores.get('model')})"


def _table(metrics: list[MetricComparison]) -> list[str]:
    rows = [_HEAD, *(_cells(one) for one in metrics)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def _cells(one: MetricComparison) -> tuple[str, ...]:
    found = one.difference
    interval = "-" if math.isnan(found.low) else f"[{number(found.low, '+')}, {number(found.high, '+')}]"
    name = one.metric.name + ("" if one.metric.higher_is_better else " (less is better)")
    return (
        name, number(one.a), number(one.b), number(found.value, "+"), interval, _p(found.p_value), found.method,
        str(one.wins), str(one.losses), str(one.ties),
    )  # fmt: skip


def _verdict(one: MetricComparison) -> list[str]:
    """Say what the numbers of the main metric come to."""
    found = one.difference
    tests = [f"{name} p = {_p(p)}" for name, p in _tests(one) if p is not None and not math.isnan(p)]
    if math.isnan(found.p_value):
        said = "nothing can be said about chance from so few rows"
    elif found.p_value < 0.05:
        said = f"B is {'better' if one.gain > 0 else 'worse'} than A, and chance alone would hardly do that"
    else:
        said = "no difference beyond chance is shown"
    lines = [f"{one.metric.name}: {said}"]
    if tests:
        lines.append(f"  standard error of the difference {number(found.stderr)}; {', '.join(tests)}")
    return lines


def _tests(one: MetricComparison) -> list[tuple[str, float | None]]:
    found = one.difference
    t_test = "clustered t" if found.method == "clustered t" else "paired t"
    return [("McNemar", found.p_mcnemar), (t_test, found.p_t), ("bootstrap", found.p_bootstrap)]


def _flip_lines(one: MetricComparison, num_flips: int | None) -> list[str]:
    if not one.flips:
        return ["no row came out differently"]
    shown = one.flips[:num_flips]
    more = len(one.flips) - len(shown)
    tail = f", the {len(shown)} that differ most (--flips N shows more)" if more and shown else ""
    lines = [f"{_rows(len(one.flips))} came out differently{tail}"]
    for word, flips in (("won", [f for f in shown if f.is_win]), ("lost", [f for f in shown if not f.is_win])):
        if flips:
            ids = ", ".join(_flip(flip, one) for flip in flips)
            lines += textwrap.wrap(
                ids, _WIDTH, initial_indent=f"  {word + ':':<6}", subsequent_indent=" " * 8, break_on_hyphens=False
            )
    return lines


def _flip(flip: Flip, one: MetricComparison) -> str:
    text = flip.id if len(flip.id) <= _MAX_ID_CHARS else flip.id[: _MAX_ID_CHARS - 1] + "…"
    text = "".join(char if char.isprintable() else "?" for char in text)
    if one.metric.is_mean and abs(flip.a - flip.b) == 1:  # right and wrong: the word says it
        return text
    return f"{text} ({flip.a:.4g} to {flip.b:.4g})"


def _rows(num: int) -> str:
    return "1 row" if num == 1 else f"{num} rows"


def _p(p: float) -> str:
    if math.isnan(p):
        return "-"
    return f"{p:.2g}" if p < 0.001 else f"{p:.4f}"


def _run_as_json(run: Evaluation) -> dict[str, Any]:
    return {"run": str(run.folder), "name": run.name, "model": run.scores.get("model")}


def _metric_as_json(one: MetricComparison, num_flips: int | None) -> dict[str, Any]:
    difference = {key: _known(value) for key, value in dataclasses.asdict(one.difference).items()}
    for key in ("num_higher", "num_lower", "num_equal"):  # wins, losses and ties say it with what is better
        del difference[key]
    difference["difference"] = difference.pop("value")
    return {
        "higher_is_better": one.metric.higher_is_better,
        "a": one.a,
        "b": one.b,
        **difference,
        "wins": one.wins,
        "losses": one.losses,
        "ties": one.ties,
        "flips": [
            {"id": flip.id, "a": flip.a, "b": flip.b, "outcome": "win" if flip.is_win else "loss"}
            for flip in one.flips[:num_flips]
        ],
    }


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
