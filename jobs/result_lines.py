"""The lines of `results.jsonl`: one for each completion, or one for a row that has none.

Owns their shape alone. The columns of the row come back as read, all of them. A line of an OpenAI batch is answered by
one line of that format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs import json_text
from jobs.openai_batch.responses import answer_line, error_line
from jobs.overlong import PROMPT_TOO_LONG
from jobs.rows import Row
from jobs.token_scores import own_shape
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
    status = refused_status(error, skip_overlong)
    if row.call is not None:
        line = error_line(row.call, error, row.index)
    else:
        line = line_head(row)
        line["finish_reason"] = status
        line["error"] = {"code": error.code, "message": error.message, "retryable": error.retryable}
        line["row"] = row.columns
    return Result(row.index, status, [json_text.dumps(line)], error.code)


def refused_status(error: RequestError, skip_overlong: bool) -> str:
    """Say whether a row with an error is an error row or one that the job wants skipped."""
    return "skipped" if skip_overlong and error.code == PROMPT_TOO_LONG else "error"


def answered(row: Row, output: Any) -> Result:
    """Make the result of a row whose completions are done.

    Args:
        row: the row.
        output: its `nanovllm.RequestOutput`, without an error.
    """
    if row.call is not None:
        lines = [answer_line(row.call, output, row.num_cut_tokens, row.num_cached_tokens)]
    else:
        lines = completion_lines(row, output)
    return Result(
        index=row.index,
        status="ok",
        lines=[json_text.dumps(line) for line in lines],
        num_prompt_tokens=len(output.prompt_token_ids),
        num_completion_tokens=sum(len(completion.token_ids) for completion in output.outputs),
        num_cached_tokens=output.num_cached_tokens,
    )


def completion_lines(row: Row, output: Any) -> list[dict[str, Any]]:
    """Make the lines of a row's completions as values."""
    return [_completion_line(row, output, completion) for completion in output.outputs]


def _completion_line(row: Row, output: Any, completion: Any) -> dict[str, Any]:
    line = line_head(row, completion.index)
    line["text"] = completion.text
    line["finish_reason"] = completion.finish_reason
    line["stop_reason"] = completion.stop_reason
    line["usage"] = {
        "prompt_tokens": len(output.prompt_token_ids),
        "completion_tokens": len(completion.token_ids),
        "cached_tokens": row.num_cached_tokens,
    }
    if completion.seed is not None:
        line["seed"] = completion.seed
    if row.returns_token_ids and completion.index == 0:
        line["prompt_token_ids"] = output.prompt_token_ids
    if row.returns_token_ids or completion.logprobs is not None:
        line["token_ids"] = completion.token_ids
    if completion.logprobs is not None:
        line["logprobs"] = own_shape(completion.logprobs)
    if output.prompt_logprobs is not None and completion.index == 0:
        line["prompt_logprobs"] = own_shape(output.prompt_logprobs)
    if row.num_cut_tokens:
        line["num_cut_tokens"] = row.num_cut_tokens
    line["row"] = row.columns
    return line


def line_head(row: Row, sample: int = 0) -> dict[str, Any]:
    """Give the keys that every line begins with; those that the row does not say are null."""
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
