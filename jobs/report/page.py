"""Write the page: one HTML file with its style, its script and all its content, for a run or two of them.

Owns the template's environment. Every value is escaped by Jinja; the page's own policy forbids any script and style but
the two whose hashes it names. The file is written while the rows are read, so its size is not bounded by memory.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2

import nanovllm
from jobs.evaluation.score_text import few_groups
from jobs.files import write_atomically
from jobs.report import formats, view
from jobs.report.rows import ReportRow
from jobs.report.source import FinishedRun, section
from jobs.report.survey import Survey, survey
from nanovllm import ConfigError

DEFAULT_NUM_ROWS = 2000
REPORT = "report.html"

_BUFFERED_PIECES = 200


def write_report(folder: Path, other: Path | None = None, output: Path | None = None,
                 num_rows: int | None = DEFAULT_NUM_ROWS) -> Path:  # fmt: skip
    """Write the report of a finished run, and how another one differs from it.

    Args:
        folder: directory of the run.
        other: directory of the run to compare with.
        output: the file to write; `report.html` in the run's directory by default.
        num_rows: how many rows, and pairs of rows, the page shows; None is all.

    Returns:
        The file.

    Raises:
        ConfigError: a directory holds no finished run, or the file cannot be written.
    """
    run = FinishedRun(folder)
    second = None if other is None else FinishedRun(other)
    path = folder / REPORT if output is None else output
    _refuse_run_files(path, run, second)
    environment = _environment()
    stream = environment.get_template("page.html").stream(_context(environment, run, second, num_rows))
    stream.enable_buffering(_BUFFERED_PIECES)
    try:
        write_atomically(path, (piece.encode("utf-8") for piece in stream))
    except OSError as error:
        path.with_name(path.name + ".tmp").unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}; choose another file by -o") from None
    except BaseException:
        path.with_name(path.name + ".tmp").unlink(missing_ok=True)
        raise
    return path


def _refuse_run_files(path: Path, *runs: FinishedRun | None) -> None:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name a file by -o")
    for run in runs:
        if run is not None and path.resolve() in {file.resolve() for file in run.folder.glob("*.json*")}:
            raise ConfigError(f"{path} is a file of the run {run.folder}: choose another name by -o")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        {name: getattr(formats, name) for name in ("clip", "ending", "preview", "real", "score", "whole")}
    )
    return environment


def _finalize(value: Any) -> Any:
    # what is markup already, as a macro's output, holds finished values
    return formats.visible(value) if type(value) is str else "" if value is None else value


def _context(
    environment: jinja2.Environment, run: FinishedRun, other: FinishedRun | None, num_rows: int | None
) -> dict[str, Any]:
    found = survey(run.rows())
    metrics = run.metrics
    main_metric = next((name for name, values in itertools.islice(metrics.items(), 1) if view.has_best(values)), None)
    is_eval = run.scores is not None
    figures = view.figures(run, found)
    names = _names([run] if other is None else [run, other])
    comparison = None if other is None else _compare(run, other, num_rows)
    assets = {name: environment.loader.get_source(environment, f"page.{kind}")[0]
              for name, kind in (("style", "css"), ("script", "js"))}  # fmt: skip
    return {
        **assets,
        **{f"{name}_hash": _hash(text) for name, text in assets.items()},
        "version": nanovllm.__version__,
        "kind": "Comparison" if other else "Evaluation" if is_eval else "Generation",
        "title": f"{' against '.join(names)}: report",
        "names": names,
        "of_a": " of A" if other else "",
        "subtitle": _subtitle(run),
        "sections": _sections(run, other),
        "run": run,
        "other": other,
        "comparison": comparison,
        "tiles": view.tiles(run),
        "scores": view.score_lines(run),
        "scores_note": _scores_note(run),
        "few_groups": few_groups(run.metrics),
        "verdicts": view.verdicts(run),
        "groups": view.groups(run),
        "has_examples": bool(section(run.scores or {}, "eval").get("few_shot")),
        "figures": figures,
        "has_throughput": any(figure.chart.line for figure in figures),
        "finish_reasons": found.finish_reasons.most_common(),
        "errors": dict(sorted(found.errors.items(), key=lambda item: -item[1].count)),
        "settings": view.settings(run),
        "main_metric": main_metric,
        "mark": lambda row, name: _mark(row, name, metrics),
        "row_columns": _row_columns(found),
        "rows": _first(run.rows(), num_rows),
        "rows_note": _rows_note(found.num_lines, num_rows),
    }


def _compare(run: FinishedRun, other: FinishedRun, num_rows: int | None) -> Any:
    from jobs.report.pairs import Comparison  # brings scipy, which a report of one run does not need

    return Comparison(run, other, num_rows)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _first(rows: Iterator[ReportRow], num_rows: int | None) -> Iterator[ReportRow]:
    return itertools.islice(rows, num_rows)


def _row_columns(found: Survey) -> list[str]:
    used = found.num_columns_used
    names = ["row", "prompt", "output"]
    names += [name for name in ("target", "extracted", "scores") if used[name]]
    return [*names, *([] if used["is_judged"] else ["ended", "tokens"])]


def _rows_note(num_lines: int, num_rows: int | None) -> str:
    if num_rows is None or num_lines <= num_rows:
        return f"All {formats.whole(num_lines)} results, in the order of the input."
    return (
        f"The first {formats.whole(num_rows)} of {formats.whole(num_lines)} results; "
        f"{formats.whole(num_lines - num_rows)} are left out. All of them: nanovllm report DIR --rows all."
    )


def _mark(row: ReportRow, metric: str | None, metrics: dict[str, dict[str, Any]]) -> str:
    """Tell a row whose score is the best there is (1, or 0 where lower is better) from one that is not."""
    if metric not in row.scores or not view.has_best(metrics.get(metric, {})):
        return ""
    value = row.scores[metric]
    is_best = value >= 1 if metrics[metric].get("higher_is_better", True) else value <= 0
    return "right" if is_best else "wrong"


def _names(runs: list[FinishedRun]) -> list[str]:
    names = [run.name for run in runs]
    if len(set(names)) < len(names):  # one job, twice
        names = [f"{run.name} ({run.folder.resolve().name})" for run in runs]
    return names


def _subtitle(run: FinishedRun) -> str:
    model = (run.manifest.get("model") or {}).get("name")
    task = (run.scores or {}).get("task")
    parts = [f"model {model}", f"task {task}" if task else "", f"ended {run.manifest.get('ended')}"]
    return " · ".join(part for part in parts if part)


def _scores_note(run: FinishedRun) -> str:
    rows = (run.scores or {}).get("rows") or {}
    words = [f"{formats.whole(rows[name])} {name}" for name in ("total", "scored", "errors", "skipped") if name in rows]
    note = f"Rows: {', '.join(words)}." if words else ""
    return f"{note} Rows with an error count as wrong." if rows.get("errors") else note


def _sections(run: FinishedRun, other: FinishedRun | None) -> list[tuple[str, str]]:
    entries = [
        ("summary", "Summary", True),
        ("comparison", "Comparison", other is not None),
        ("scores", "Scores", bool(run.metrics)),
        ("groups", "Groups", bool((run.scores or {}).get("groups"))),
        ("distributions", "Throughput and lengths", True),
        ("endings", "Endings and errors", True),
        ("rows", "Rows", True),
        ("settings", "Settings", True),
    ]
    return [(anchor, words) for anchor, words, is_there in entries if is_there]
