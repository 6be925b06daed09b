"""Write the line that answers a call, as readers of hosted batches expect it.

Owns its shape alone. Everything in a line is a function of the call and its completions, so that a run that was
interrupted, or is done twice, gives the same bytes: ids are hashes and `created` is 0 (the manifest has the times).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from jobs.openai_batch.calls import Call
from jobs.openai_batch.errors import CallRefused
from jobs.openai_batch.fields import CHAT
from jobs.token_scores import chat_shape, id_shape, text_shape
from nanovllm import RequestError

_STATUS = {"model_not_found": 404, "invalid_logits": 500}
_GRAMMAR_ERRORS = ("invalid_grammar", "grammar_failed", "structured_outputs_unavailable")
# The line itself is at fault, before any endpoint could judge a request.
_OUTSIDE_HTTP = ("invalid_row", "invalid_batch_line", "invalid_custom_id", "duplicate_id")


def answer_line(call: Call, output: Any, num_cut_tokens: int = 0, num_cached_tokens: int = 0) -> dict[str, Any]:
    """Make the line of a call that was served.

    Args:
        call: the call.
        output: its `nanovllm.RequestOutput`, without an error.
        num_cut_tokens: prompt tokens that `on_overlong` removed.
        num_cached_tokens: what the usage says of the prefix cache.
    """
    digest = _digest(call.model, call.endpoint, call.custom_id)
    num_prompt_tokens = len(output.prompt_token_ids)
    num_completion_tokens = sum(len(completion.token_ids) for completion in output.outputs)
    is_chat = call.endpoint == CHAT
    body = {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{digest}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": 0,
        "model": call.model,
        "choices": [_chat_choice(one, call) if is_chat else _text_choice(one, call) for one in output.outputs],
        "usage": {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_completion_tokens,
            "total_tokens": num_prompt_tokens + num_completion_tokens,
            "prompt_tokens_details": prompt_details(num_cached_tokens),
        },
    }
    if num_cut_tokens + call.num_cut_tokens:
        body["num_cut_tokens"] = num_cut_tokens + call.num_cut_tokens
    # where vLLM has them: beside the choices of a chat, in each choice of a completion
    for place in [body] if is_chat else body["choices"]:
        if call.returns_token_ids:
            place["prompt_token_ids"] = output.prompt_token_ids
        if output.prompt_logprobs is not None:
            place["prompt_logprobs"] = id_shape(output.prompt_logprobs)
    return _line(call, digest, {"status_code": 200, "request_id": f"req_{digest}", "body": body}, None)


def prompt_details(num_cached_tokens: int) -> dict[str, int]:
    """Give the `prompt_tokens_details` of a usage."""
    return {"cached_tokens": num_cached_tokens}


def error_line(call: Call, error: RequestError, index: int) -> dict[str, Any]:
    """Make the line of a call that was not served.

    Args:
        call: the call, as far as it could be read.
        error: why it is refused.
        index: the row's position; it tells lines apart whose `custom_id` does not.
    """
    digest = _digest(call.model, str(index), call.custom_id)
    if error.code in _OUTSIDE_HTTP:
        return _line(call, digest, None, {"code": error.code, "message": error.message})
    status = _STATUS.get(error.code, 400)
    cause = {
        "message": error.message,
        "type": "server_error" if status >= 500 else "invalid_request_error",
        "param": _param(call, error),
        "code": error.code,
    }
    return _line(call, digest, {"status_code": status, "request_id": f"req_{digest}", "body": {"error": cause}}, None)


def _param(call: Call, error: RequestError) -> str | None:
    if isinstance(error, CallRefused):
        return error.param
    return call.structured_field if error.code in _GRAMMAR_ERRORS else None


def _line(call: Call, digest: str, response: dict | None, error: dict | None) -> dict[str, Any]:
    return {"id": f"batch_req_{digest}", "custom_id": call.custom_id, "response": response, "error": error}


def _chat_choice(completion: Any, call: Call) -> dict[str, Any]:
    message = {"role": "assistant", "content": completion.text, "refusal": None}
    return _choice(completion, call, {"message": message}, chat_shape)


def _text_choice(completion: Any, call: Call) -> dict[str, Any]:
    return _choice(completion, call, {"text": completion.text}, text_shape)


def _choice(completion: Any, call: Call, content: dict[str, Any], shape: Callable) -> dict[str, Any]:
    logprobs = completion.logprobs
    choice = {
        "index": completion.index,
        **content,
        "logprobs": None if logprobs is None else shape(logprobs, call.num_top_logprobs, call.logprob_token_ids),
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
    }
    if call.returns_token_ids:
        choice["token_ids"] = completion.token_ids
    return choice


def _digest(*parts: str | None) -> str:
    # each part with its length, so that no two lists of parts run together to the same bytes
    data = "".join(f"{-1 if part is None else len(part)}:{part}" for part in parts)
    return hashlib.blake2b(data.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
