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
    is_skipped = skip_overlong and error.code == PROMPT_TOO_LONG
    status = "skipped" if is_skipped else "error"
    if row.call is not None:
        line = error_line(row.call, error, row.index)
    else:
        line = _head(row, 0)
        line["finish_reason"] = status
        line["error"] = {"code": error.code, "message": error.message, "retryable": error.retryable}
        line["row"] = row.columns
    return Result(row.index, status, [json_text.dumps(line)], error.code)


def answered(row: Row, output: Any) -> Result:
    """Make the result of a row whose completions are done.

    Args:
        row: the row.
        output: its `nanovllm.RequestOutput`, without an error.
    """
    if row.call is not None:
        lines = [answer_line(row.call, output, row.num_cut_tokens)]
    else:
        lines = [_completion_line(row, output, completion) for completion in output.outputs]
    return Result(
        index=row.index,
        status="ok",
        lines=[json_text.dumps(line) for line in lines],
        num_prompt_tokens=len(output.prompt_token_ids),
        num_completion_tokens=sum(len(completion.token_ids) for completion in output.outputs),
        num_cached_tokens=output.num_cached_tokens,
    )


def _completion_line(row: Row, output: Any, completion: Any) -> dict[str, Any]:
    line = _head(row, completion.index)
    line["text"] = completion.text
    line["finish_reason"] = completion.finish_reason
    line["stop_reason"] = completion.stop_reason
    # without cached tokens: they depend on what ran before and beside, and a resumed run's bytes must not
    line["usage"] = {
        "prompt_tokens": len(output.prompt_token_ids),
        "completion_tokens": len(completion.token_ids),
    }
    if completion.seed is not None:
        line["seed"] = completion.seed
    if completion.logprobs is not None:
        line["token_ids"] = completion.token_ids
        line["logprobs"] = own_shape(completion.logprobs)
    if output.prompt_logprobs is not None and completion.index == 0:
        line["prompt_logprobs"] = own_shape(output.prompt_logprobs)
    if row.num_cut_tokens:
        line["num_cut_tokens"] = row.num_cut_tokens
    line["row"] = row.columns
    return line


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
