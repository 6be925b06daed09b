"""Count what a run did. `rows = ok + errors + skipped`, always."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from jobs.result_lines import Result


@dataclass(slots=True)
class Tally:
    """The counts of a run so far."""

    rows: int = 0
    ok: int = 0
    errors: int = 0
    skipped: int = 0
    errors_by_code: Counter = field(default_factory=Counter)
    lines: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def add(self, result: Result) -> None:
        """Count one row."""
        self.rows += 1
        self.lines += len(result.lines)
        self.prompt_tokens += result.num_prompt_tokens
        self.completion_tokens += result.num_completion_tokens
        self.cached_tokens += result.num_cached_tokens
        if result.status == "ok":
            self.ok += 1
        elif result.status == "skipped":
            self.skipped += 1
        else:
            self.errors += 1
            self.errors_by_code[result.error_code] += 1
