"""What stands on the page, in the order of the page, from a run and the survey of its rows.

Owns the choice of numbers and their words. Knows no HTML.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jobs.report import charts
from jobs.report.formats import duration, real, score, whole
from jobs.report.histogram import Histogram
from jobs.report.source import FinishedRun, section
from jobs.report.survey import Survey

_MAX_GROUPS = 500
_MAX_TABLE_STEPS = 24


@dataclass(frozen=True, slots=True)
class Fact:
    """A name and its value; `note` is small print."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its caption and its numbers as a table."""

    title: str
    caption: str
    chart: charts.Chart
    headers: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class ScoreCell:
    """A score with its interval, and its place on a scale from 0 to 100; None without an interval.

    Attributes:
        reference: where the score of all rows stands on the same scale.
    """

    value: str
    low: str
    high: str
    num: str
    method: str
    whisker: charts.Whisker | None
    reference: float | None = None


@dataclass(frozen=True, slots=True)
class ScoreLine:
    """A line of a score table; `note` says which way is better where that is not the usual way."""

    name: str
    cells: list[ScoreCell]
    note: str = ""


@dataclass(slots=True)
class Groups:
    """The table of groups; `num_left_out` are beyond its end."""

    metrics: list[str]
    lines: list[ScoreLine] = field(default_factory=list)
    num_left_out: int = 0


def tiles(run: FinishedRun) -> list[Fact]:
    """Give the numbers at the top of the page."""
    counts, tokens, seconds = (section(run.manifest, name) for name in ("counts", "tokens", "seconds"))
    cached = tokens.get("cached")
    words = {"errors": "error" if counts.get("errors") == 1 else "errors", "skipped": "skipped"}
    bad = [f"{whole(counts[name])} {word}" for name, word in words.items() if counts.get(name)]
    completion = [
        Fact("completion tokens", whole(tokens.get("completion"))),
        Fact("completion tokens/s", real(run.manifest.get("tokens_per_s"))),
    ]
    if tokens.get("completion") == 0:  # prompts were scored, nothing was generated
        completion = []
    return [
        Fact("rows", whole(counts.get("rows")), ", ".join([f"{whole(counts.get('ok'))} ok", *bad])),
        Fact("prompt tokens", whole(tokens.get("prompt")), f"{whole(cached)} from the cache" if cached else ""),
        *completion,
        Fact("time", duration(seconds.get("generate")), f"and {duration(seconds.get('load'))} for loading"),
    ]


def verdicts(run: FinishedRun) -> list[tuple[bool, str]]:
    """Give the conditions of the evaluation's gate: whether each holds, and its sentence."""
    gate = run.manifest.get("gate")
    found = [one for one in gate if isinstance(one, dict)] if isinstance(gate, list) else []
    return [(one.get("holds") is True, str(one.get("sentence"))) for one in found]


def score_lines(run: FinishedRun) -> list[ScoreLine]:
    """Give the score table of an evaluation; empty for a generation run."""
    shared = charts.Scale(0, 1) if all(map(_is_share, run.metrics.values())) else None
    return [
        ScoreLine(name, [_cell(values, shared or _scale([values]))], _better(values))
        for name, values in run.metrics.items()
    ]


def has_best(values: dict[str, Any]) -> bool:
    """Whether a row's score can be the best there is: it goes from 0 to 1, as BLEU and what has no end do not."""
    return bool(values) and values.get("method") != "bootstrap" and _is_share(values)


def groups(run: FinishedRun) -> Groups | None:
    """Give the scores of each group; None when rows have no groups."""
    found = {name: values for name, values in section(run.scores or {}, "groups").items() if isinstance(values, dict)}
    if not found:
        return None
    metrics = list(run.metrics)
    scales = {}
    for metric in metrics:
        cells = [section(values, metric) for values in found.values()]
        scales[metric] = charts.Scale(0, 1) if all(map(_is_share, cells)) else _scale(cells)
    table = Groups(metrics, num_left_out=max(len(found) - _MAX_GROUPS, 0))
    for name, values in list(found.items())[:_MAX_GROUPS]:
        cells = []
        for metric in metrics:
            overall = run.metrics[metric].get("value")
            cells.append(_cell(section(values, metric), scales[metric], overall))
        table.lines.append(ScoreLine(name, cells))
    return table


def figures(run: FinishedRun, found: Survey) -> list[Figure]:
    """Give the charts that the run has numbers for."""
    made = [
        _throughput(run),
        _histogram("Prompt tokens", "tokens", "rows", found.prompt_tokens),
        _histogram("Completion tokens", "tokens", "results", found.completion_tokens),
        _histogram("Length of prompts", "characters", "rows", found.prompt_chars),
        _histogram("Length of outputs", "characters", "results", found.output_chars),
    ]
    return [figure for figure in made if figure is not None]


def settings(run: FinishedRun) -> list[tuple[str, list[Fact]]]:
    """Give what was run, with what, and on what, as named lists."""
    manifest = run.manifest
    job, model = section(manifest, "job"), section(manifest, "model")
    inputs = [one for one in manifest.get("input") or [] if isinstance(one, dict)]
    about = {
        "job": job.get("name"), "job file": job.get("path"), "model": model.get("name"),
        "model directory": model.get("path"), "architecture": model.get("architecture"),
        "parameters": model.get("parameters"), "identity of the weights": model.get("identity"),
        "input": ", ".join(str(one.get("path")) for one in inputs),
        "sha256 of the input": ", ".join(str(one.get("sha256")) for one in inputs if one.get("sha256")),
        "shard": job.get("shard"), "merged from": manifest.get("merged_from"), "started": manifest.get("started"),
        "ended": manifest.get("ended"), "resumes": manifest.get("resumes"), "exit code": manifest.get("exit_code"),
    }  # fmt: skip
    sampling = {
        name: f"{_shown(value.get('value'))} ({value.get('origin')})"
        for name, value in section(manifest, "sampling").items()
        if isinstance(value, dict) and (value.get("origin") != "built-in" or name in ("temperature", "max_tokens"))
    }
    machine = {"kernels": manifest.get("kernels"), **section(manifest, "cpu")}
    scores = run.scores or {}
    lists = {
        "Run": about,
        "Prompt": section(job, "prompt"),
        "Evaluation": {**section(scores, "eval"), **{f"hash of {k}": v for k, v in section(scores, "hashes").items()}},
        "Sampling": sampling,
        "Engine": section(manifest, "engine"),
        "Machine": machine,
        "Versions": section(manifest, "versions"),
    }
    facts = {heading: list(_flatten(values)) for heading, values in lists.items()}
    return [(heading, values) for heading, values in facts.items() if values]


def _throughput(run: FinishedRun) -> Figure | None:
    series = run.series
    if len(series.get("seconds", ())) < 2:
        return None
    has_tokens = series["completion_tokens"][-1] > 0
    what, unit = ("completion_tokens", "completion tokens/s") if has_tokens else ("rows", "rows/s")
    points, table, before = [], [], (0.0, 0)
    for at, done, rows in zip(series["seconds"], series[what], series["rows"], strict=True):
        rate = max(done - before[1], 0) / max(at - before[0], 1e-9)
        points += [(before[0], rate), (at, rate)]
        table.append((duration(at), whole(rows), whole(done), real(rate)))
        before = (at, done)
    end, total = before
    middle = f"{real(total / end)} {unit} over {duration(end)}"
    caption = f"{middle}; each step is the mean since the step before."
    if run.manifest.get("resumes"):
        caption += " The last process of a run that was resumed."
    chart = charts.curve(points, f"Throughput over time: {middle}", " s")
    every = -(-len(table) // _MAX_TABLE_STEPS)
    headers = ("after", "rows", "completion tokens" if has_tokens else "rows done", unit)
    return Figure("Throughput over time", caption, chart, headers, table[every - 1 :: every])


def _histogram(title: str, unit: str, things: str, histogram: Histogram) -> Figure | None:
    if not histogram.largest:
        return None
    bins = histogram.bins()
    rows = [(_span(one.low, one.high), whole(one.count)) for one in bins]
    bars = [(charts.short(one.low), f"{words} {unit}: {count} {things}", one.count)
            for one, (words, count) in zip(bins, rows, strict=True)]  # fmt: skip
    median = histogram.quantile(0.5)
    caption = (
        f"{whole(histogram.num)} {things}, {whole(histogram.smallest)} to {whole(histogram.largest)} {unit}, "
        f"median {whole(median)}, mean {real(histogram.mean)}, 95 % up to {whole(histogram.quantile(0.95))}."
    )
    place = (median - bins[0].low + 0.5) / (bins[0].high - bins[0].low + 1)
    chart = charts.columns(bars, f"{title}: {caption}", (place, "median"))
    return Figure(title, caption, chart, (unit, things), rows)


def _cell(values: dict[str, Any], scale: charts.Scale, overall: Any = None) -> ScoreCell:
    value, low, high = (values.get(name) for name in ("value", "low", "high"))
    is_known = all(_is_number(each) for each in (value, low, high))
    return ScoreCell(
        score(value), score(low), score(high), whole(values.get("n")), str(values.get("method") or ""),
        scale.whisker(value, low, high) if is_known else None,
        round(100 * scale.share(overall), 2) if _is_number(overall) else None,
    )  # fmt: skip


def _scale(cells: list[dict[str, Any]]) -> charts.Scale:
    ends = [cell[name] for cell in cells for name in ("low", "high", "value") if _is_number(cell.get(name))]
    return charts.Scale(min([0.0, *ends]), max([0.0, *ends]))


def _is_share(cell: dict[str, Any]) -> bool:
    return all(0 <= cell[name] <= 1 for name in ("value", "low", "high") if _is_number(cell.get(name)))


def _better(values: dict[str, Any]) -> str:
    return "lower is better" if values.get("higher_is_better") is False else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _span(low: int, high: int) -> str:
    return whole(low) if low == high else f"{whole(low)} to {whole(high)}"


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[Fact]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        elif value is not None and value != "" and value != [] and value != {}:
            is_size = isinstance(value, int) and name.endswith(("bytes", "parameters"))
            yield Fact(f"{prefix}{name}", whole(value) if is_size else _shown(value))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    is_plain = isinstance(value, str) and value == value.strip()  # blanks at an end would not be seen
    return value if is_plain else json.dumps(value, ensure_ascii=False)
