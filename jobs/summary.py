"""The last words of a run on stderr: at most one screen."""

from __future__ import annotations

from typing import Any

from jobs.job_file import Job
from jobs.run_directory import RunDirectory
from jobs.tally import Resumed, Tally

_MAX_CODES = 8


def summarize(
    job: Job,
    directory: RunDirectory,
    tally: Tally,
    load_s: float,
    generate_s: float,
    scores: dict[str, Any] | None = None,
) -> str:
    """Say what a finished run did, what went wrong by code, what an evaluation came to, and where the results are."""
    rate = tally.new_completion_tokens / generate_s if generate_s > 0 else 0.0
    cached = f" ({tally.cached_tokens} cached)" if job.generates else ""  # scoring does not count them
    lines = [
        f"{job.name}: {tally.rows} rows: {tally.ok} ok, {tally.errors} errors, {tally.skipped} skipped",
        f"tokens:  {tally.prompt_tokens} prompt{cached}, {tally.completion_tokens} completion, {rate:.1f} tok/s",
        f"time:    {generate_s:.1f} s generating, {load_s:.1f} s loading",
        f"results: {directory.results} ({tally.lines} lines)",
    ]
    if tally.resumed is not None:
        lines.insert(1, f"resumed: {_resumed(tally.resumed)}")
    if tally.errors:
        lines.insert(1, f"errors:  {_by_code(tally)}")
    if scores is not None:
        from jobs.evaluation.score_text import metric_lines

        lines += [f"score:   {line}" for line in metric_lines(scores)]
        lines.append(f"scores:  {directory.scores}")
    return "\n".join(lines)


def _resumed(resumed: Resumed) -> str:
    words = [f"{resumed.kept} rows kept"]
    words += [f"{number} done again (changed: {part})" for part, number in resumed.changed.most_common(_MAX_CODES)]
    words.append(f"{resumed.new} new")
    if resumed.dropped:
        words.append(f"{resumed.dropped} dropped")
    return ", ".join(words)


def _by_code(tally: Tally) -> str:
    common = tally.errors_by_code.most_common(_MAX_CODES)
    words = [f"{code} {number}" for code, number in common]
    if len(tally.errors_by_code) > _MAX_CODES:
        words.append("…")
    return ", ".join(words)
