"""Count what a run did. `rows = ok + errors + skipped`, always."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from jobs.result_lines import Result


@dataclass(slots=True)
class Resumed:
    """What became of an earlier process's rows.

    Attributes:
        kept: rows whose result was taken over.
        changed: rows that were done again, by the part that changed.
        new: rows that the earlier process had not finished, or not heard of.
        dropped: finished rows that the input has no more.
    """

    kept: int = 0
    changed: Counter = field(default_factory=Counter)
    new: int = 0
    dropped: int = 0

    def as_json(self) -> dict[str, Any]:
        """Give the counts as JSON values, for the manifest."""
        return {"kept": self.kept, "changed": dict(self.changed), "new": self.new, "dropped": self.dropped}


@dataclass(slots=True)
class Tally:
    """The counts of a run so far. What was kept from an earlier process counts like what was done by this one.

    Attributes:
        retryable: error rows that the same command may turn into answers.
        new_completion_tokens: completion tokens of this process alone.
        resumed: what became of an earlier process's rows; None in a run that began from nothing.
    """

    rows: int = 0
    ok: int = 0
    errors: int = 0
    skipped: int = 0
    retryable: int = 0
    errors_by_code: Counter = field(default_factory=Counter)
    lines: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    new_completion_tokens: int = 0
    resumed: Resumed | None = None

    def add(self, result: Result, is_retryable: bool = False) -> None:
        """Count one row that was done."""
        self.new_completion_tokens += result.num_completion_tokens
        self.add_head(head_values(result, is_retryable), len(result.lines))

    def add_head(self, head: dict[str, Any], num_lines: int) -> None:
        """Count one row by its head in the journal."""
        self.rows += 1
        self.lines += num_lines
        prompt, completion, cached = head["tokens"]
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.cached_tokens += cached
        if head["status"] == "ok":
            self.ok += 1
        elif head["status"] == "skipped":
            self.skipped += 1
        else:
            self.errors += 1
            self.retryable += head["retryable"]
            self.errors_by_code[head["code"]] += 1


def head_values(result: Result, is_retryable: bool) -> dict[str, Any]:
    """Give what the journal remembers of a result for the counts."""
    return {
        "status": result.status,
        "code": result.error_code,
        "retryable": is_retryable,
        "tokens": [result.num_prompt_tokens, result.num_completion_tokens, result.num_cached_tokens],
    }
