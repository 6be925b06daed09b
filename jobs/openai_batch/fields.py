"""Which fields of a request's body are served, and what each becomes.

Owns the tables. A field is a sampling setting, or part of the prompt, or has no influence on the answer, or is refused
by name; null always means that it was not given.
"""

from __future__ import annotations

import difflib
from typing import Any

from jobs.openai_batch.errors import CallRefused, shown
from jobs.openai_batch.response_format import FIELD as RESPONSE_FORMAT
from jobs.openai_batch.response_format import read_response_format
from nanovllm import ConfigError, SamplingParams

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
ENDPOINTS = (CHAT, COMPLETIONS)

# Same name and meaning as in SamplingParams; one that this version's SamplingParams lacks is refused by name.
_SAMPLING = (
    "allowed_token_ids", "bad_words", "dry_allowed_length", "dry_base", "dry_multiplier", "dry_penalty_last_n",
    "dry_sequence_breakers", "frequency_penalty", "ignore_eos", "include_stop_str_in_output", "logit_bias",
    "logprob_token_ids", "min_p", "min_tokens", "n", "no_repeat_ngram_size", "presence_penalty", "prompt_logprobs",
    "repetition_detection", "repetition_penalty", "seed", "skip_special_tokens", "spaces_between_special_tokens",
    "stop", "stop_token_ids", "structured_outputs", "temperature", "thinking_token_budget", "top_k", "top_n_sigma",
    "top_p", "typical_p",
)  # fmt: skip
# What a response has besides, and what of a prompt is kept.
_OWN = ("return_token_ids", "truncate_prompt_tokens", "truncation_side", RESPONSE_FORMAT)
_PROMPT = {
    CHAT: (
        "messages", "tools", "tool_choice", "documents", "chat_template", "chat_template_kwargs",
        "add_generation_prompt", "continue_final_message",
    ),
    COMPLETIONS: ("prompt",),
}  # fmt: skip
_LENGTH = {CHAT: ("max_tokens", "max_completion_tokens"), COMPLETIONS: ("max_tokens",)}
_LOGPROBS = {CHAT: ("logprobs", "top_logprobs"), COMPLETIONS: ("logprobs",)}
# Labels for whoever serves the request; they never change an answer.
_LABELS = ("model", "user", "metadata", "safety_identifier", "prompt_cache_key", "request_id", "cache_salt")
# Fields that are not served, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple] = {
    "stream": (False,),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "store": (False,),
    "parallel_tool_calls": (True,),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "priority": (0,),
    "return_prompt_text": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
}
# What an endpoint does anyway.
_NEUTRAL_AT: dict[tuple[str, str], tuple] = {
    (CHAT, "add_special_tokens"): (False,),
    (COMPLETIONS, "add_special_tokens"): (True,),
}
# What is no sampling setting of any tool; `SamplingParams.instead_of` knows those.
_HINTS = {
    "add_special_tokens": "a chat's template writes all of them, and a completion's prompt gets those of the model",
    "stream": "a batch has no streams",
    "echo": "the prompt is not repeated in front of the completion",
    "functions": "use tools",
    "function_call": "use tools",
    "prompt": "this endpoint takes messages",
    "messages": "this endpoint takes prompt",
}


def check_fields(endpoint: str, body: dict[str, Any]) -> None:
    """Refuse the first field that is not served. Raises CallRefused."""
    served = served_fields(endpoint)
    for name, value in body.items():
        if name in served or value is None or _is_neutral(endpoint, name, value):
            continue
        raise CallRefused("unsupported_field", _refusal(name, value, served), name)


def served_fields(endpoint: str) -> set[str]:
    """Give the names of the fields that an endpoint takes with any value."""
    known = _sampling_names()
    names = {name for name in _SAMPLING if name in known}
    if "logprobs" in known:
        names.update(_LOGPROBS[endpoint])
    return names.union(_PROMPT[endpoint], _LENGTH[endpoint], _LABELS, _OWN)


def read_sampling(endpoint: str, body: dict[str, Any], length_is_set: bool) -> dict[str, Any]:
    """Turn the fields of a body into keys of `SamplingParams`, each checked by itself.

    Args:
        endpoint: one of `ENDPOINTS`.
        body: fields that `check_fields` has passed.
        length_is_set: whether the job has a `max_tokens` for requests that bring none.

    Raises:
        CallRefused: names the field that is wrong.
    """
    values = {name: body[name] for name in _SAMPLING if body.get(name) is not None}
    length = _length(endpoint, body)
    if length is not None:
        values["max_tokens"] = length
    elif endpoint == CHAT and not length_is_set:
        values["max_tokens"] = None  # whatever the context has left, as the endpoint has it
    num_logprobs = _num_logprobs(endpoint, body)
    if num_logprobs is not None:
        values["logprobs"] = num_logprobs
    structured = read_response_format(body)
    if structured is not None:
        values["structured_outputs"] = structured
    for name, value in values.items():
        _check_alone(name, value, _field_of(name, body))
    for name in ("logprobs", "prompt_logprobs"):
        if values.get(name) == -1:  # the whole vocabulary, which is too much for a line
            field = _field_of(name, body)
            raise CallRefused("invalid_sampling", f"body.{field} is -1, expected an integer of at least 0", field)
    return values


def _field_of(name: str, body: dict[str, Any]) -> str:
    """Give the field that a setting came from."""
    if name == "max_tokens" and body.get(name) is None:
        return "max_completion_tokens"
    if name == "logprobs" and body.get("top_logprobs") is not None:
        return "top_logprobs"
    if name == "structured_outputs" and body.get(name) is None:
        return RESPONSE_FORMAT
    return name


def _check_alone(name: str, value: Any, field: str) -> None:
    """Check one setting, not against the default of another that the request may bring as well."""
    try:
        SamplingParams.from_dict({name: value}, base=SamplingParams(max_tokens=None))
    except ConfigError as error:
        reason = str(error).removeprefix("sampling: ").removeprefix(name)
        if field == RESPONSE_FORMAT:
            reason = reason.replace(".json", ".json_schema.schema", 1)
        raise CallRefused("invalid_sampling", f"body.{field}{reason}", field) from None


def _length(endpoint: str, body: dict[str, Any]) -> Any:
    given = {name: body[name] for name in _LENGTH[endpoint] if body.get(name) is not None}
    if len(given) == 2 and given["max_tokens"] != given["max_completion_tokens"]:
        raise CallRefused(
            "invalid_sampling",
            f"body.max_tokens is {shown(given['max_tokens'])} and body.max_completion_tokens is "
            f"{shown(given['max_completion_tokens'])}: they mean the same, give one of them",
            "max_completion_tokens",
        )
    return next(iter(given.values()), None)


def _num_logprobs(endpoint: str, body: dict[str, Any]) -> Any:
    wanted, number = body.get("logprobs"), body.get("top_logprobs")
    if endpoint == COMPLETIONS:
        return None if wanted is False else wanted
    if wanted is not None and not isinstance(wanted, bool):
        raise CallRefused("invalid_sampling", f"body.logprobs is {shown(wanted)}, expected true or false", "logprobs")
    if not wanted:
        if number not in (None, 0):
            raise CallRefused("invalid_sampling", "body.top_logprobs needs body.logprobs: true", "top_logprobs")
        return None
    return 0 if number is None else number


def _sampling_names() -> frozenset[str]:
    return frozenset(SamplingParams.__dataclass_fields__)


def _is_neutral(endpoint: str, name: str, value: Any) -> bool:
    # by type as well: True is no 1
    neutrals = (*_NEUTRAL.get(name, ()), *_NEUTRAL_AT.get((endpoint, name), ()))
    return any(type(value) is type(neutral) and value == neutral for neutral in neutrals)


def _refusal(name: str, value: Any, served: set[str]) -> str:
    known = set(_NEUTRAL) | set(_HINTS) | set(_SAMPLING)
    if name in _HINTS:
        cure = _HINTS[name]
    elif instead := SamplingParams.instead_of(name):
        cure = instead
    elif name not in known and (near := difflib.get_close_matches(name, sorted(served), n=1, cutoff=0.75)):
        cure = f"did you mean {near[0]}?"
    else:
        cure = "leave the field out"
    return f"body.{_shown_name(name)} is {shown(value)}, which is not served: {cure}"


def _shown_name(name: str) -> str:
    return name if name.isidentifier() and len(name) <= 60 else shown(name)
