"""What one pass over the rows of a run tells: distributions, errors, and an example of each kind of error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from jobs.report.histogram import Histogram
from jobs.report.rows import ReportRow

_MAX_CODES = 100
OTHER_CODES = "(other codes)"


@dataclass(slots=True)
class ErrorKind:
    """Rows that failed for one reason; the first of them as an example."""

    count: int
    example: ReportRow


@dataclass(slots=True)
class Survey:
    """Numbers over all lines of a run's results, gathered in bounded memory.

    Attributes:
        num_lines: result rows seen.
        num_columns_used: rows that have a prompt, a target and so on, by the name of the attribute.
    """

    num_lines: int = 0
    finish_reasons: Counter = field(default_factory=Counter)
    errors: dict[str, ErrorKind] = field(default_factory=dict)
    prompt_tokens: Histogram = field(default_factory=Histogram)
    completion_tokens: Histogram = field(default_factory=Histogram)
    prompt_chars: Histogram = field(default_factory=Histogram)
    output_chars: Histogram = field(default_factory=Histogram)
    num_columns_used: Counter = field(default_factory=Counter)

    def add(self, row: ReportRow) -> None:
        """Take a row into account."""
        self.num_lines += 1
        self.finish_reasons[row.finish_reason or row.status] += 1
        if row.error_code is not None:
            self._add_error(row)
        for histogram, value in (
            (self.prompt_tokens, row.prompt_tokens if row.sample == 0 else None),
            (self.completion_tokens, row.completion_tokens),
            (self.prompt_chars, None if row.prompt is None or row.sample else len(row.prompt)),
            (self.output_chars, None if row.output is None else len(row.output)),
        ):
            if value is not None:
                histogram.add(value)
        for name in ("prompt", "output", "target", "extracted", "group", "scores", "is_judged"):
            if getattr(row, name):
                self.num_columns_used[name] += 1

    def _add_error(self, row: ReportRow) -> None:
        code = row.error_code
        if code not in self.errors and len(self.errors) >= _MAX_CODES:
            code = OTHER_CODES
        if code in self.errors:
            self.errors[code].count += 1
        else:
            self.errors[code] = ErrorKind(1, row)


def survey(rows: Iterable[ReportRow]) -> Survey:
    """Go once over all rows."""
    result = Survey()
    for row in rows:
        result.add(row)
    return result
