"""The lines of `results.jsonl`: one for each completion, or one for a row that has none.

Owns their shape alone. The columns of the row come back as read, all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs import json_text
from jobs.overlong import PROMPT_TOO_LONG
from jobs.rows import Row
from nanovllm import RequestError


@dataclass(slots=True)
class Result:
    """What a row came to.

    Attributes:
        index: the row's position.
        status: "ok", "error" or "skipped".
        lines: its lines of the results file, without line ends.
        error_code: code of the error, or None.
        num_prompt_tokens, num_completion_tokens, num_cached_tokens: what it cost.
    """

    index: int
    status: str
    lines: list[str]
    error_code: str | None = None
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    num_cached_tokens: int = 0


def refused(row: Row, error: RequestError, skip_overlong: bool = False) -> Result:
    """Make the result of a row that was not generated."""
    is_skipped = skip_overlong and error.code == PROMPT_TOO_LONG
    line = _head(row, 0)
    line["finish_reason"] = "skipped" if is_skipped else "error"
    line["error"] = {"code": error.code, "message": error.message, "retryable": error.retryable}
    line["row"] = row.columns
    return Result(row.index, "skipped" if is_skipped else "error", [json_text.dumps(line)], error.code)


def answered(row: Row, output: Any) -> Result:
    """Make the result of a row whose completions are done.

    Args:
        row: the row.
        output: its `nanovllm.RequestOutput`, without an error.
    """
    num_prompt_tokens = len(output.prompt_token_ids)
    lines = []
    for completion in output.outputs:
        line = _head(row, completion.index)
        line["text"] = completion.text
        line["finish_reason"] = completion.finish_reason
        line["stop_reason"] = completion.stop_reason
        line["usage"] = {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": len(completion.token_ids),
            "cached_tokens": output.num_cached_tokens,
        }
        if completion.seed is not None:
            line["seed"] = completion.seed
        if row.num_cut_tokens:
            line["num_cut_tokens"] = row.num_cut_tokens
        line["row"] = row.columns
        lines.append(json_text.dumps(line))
    return Result(
        index=row.index,
        status="ok",
        lines=lines,
        num_prompt_tokens=num_prompt_tokens,
        num_completion_tokens=sum(len(completion.token_ids) for completion in output.outputs),
        num_cached_tokens=output.num_cached_tokens,
    )


def _head(row: Row, sample: int) -> dict[str, Any]:
    return {
        "id": row.id,
        "index": row.index,
        "sample": sample,
        "text": None,
        "finish_reason": None,
        "stop_reason": None,
        "usage": None,
        "error": None,
    }
