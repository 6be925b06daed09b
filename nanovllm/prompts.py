"""The forms in which a caller may give prompts, conversations and sampling params."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nanovllm.errors import ConfigError, RequestError
from nanovllm.sampling_params import SamplingParams
from nanovllm.tokenizer import Tokenizer


def is_id(value: Any) -> bool:
    """Return whether a value can be a token id: an integer that is not a bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def as_prompt_list(prompts: Any) -> list:
    """Return a list of prompts; one str, one dict or one list of ints is a single prompt."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise ConfigError(f"prompts: expected a prompt or a list of prompts, found {type(prompts).__name__}")
    return [list(prompts)] if prompts and all(is_id(p) for p in prompts) else list(prompts)


def as_conversations(messages: Any) -> list:
    """Return a list of conversations; one list of messages is a single one."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ConfigError(f"messages: expected a list of messages or of conversations, found {type(messages).__name__}")
    return [messages] if messages and isinstance(messages[0], Mapping) else list(messages)


def per_prompt(sampling_params: Any, count: int) -> list[SamplingParams | None]:
    """Spread sampling params over `count` prompts."""
    if sampling_params is None or isinstance(sampling_params, SamplingParams):
        return [sampling_params] * count
    if not isinstance(sampling_params, Sequence) or not all(isinstance(p, SamplingParams) for p in sampling_params):
        raise ConfigError("sampling_params: expected a SamplingParams or a list of them")
    if len(sampling_params) != count:
        raise ConfigError(f"sampling_params: {len(sampling_params)} given for {count} prompts; give one for each")
    return list(sampling_params)


def read_prompt(prompt: Any, tokenizer: Tokenizer) -> tuple[str | None, list[int]]:
    """Turn one prompt into (text if known, token ids).

    Raises:
        RequestError: code invalid_prompt, or what `Tokenizer.encode` raises.
    """
    if isinstance(prompt, str):
        return prompt, tokenizer.encode(prompt)
    if isinstance(prompt, Mapping):
        unknown = set(prompt) - {"prompt", "prompt_token_ids"}
        if unknown or not prompt:
            found = f"found the key {sorted(map(str, unknown))[0]!r}" if unknown else "found neither"
            raise RequestError("invalid_prompt", f'a prompt takes "prompt" or "prompt_token_ids", {found}')
        text = prompt.get("prompt")
        if text is not None and not isinstance(text, str):
            raise RequestError("invalid_prompt", f"prompt: expected a string, found {type(text).__name__}")
        if prompt.get("prompt_token_ids") is not None:
            return text, _ids(prompt["prompt_token_ids"])
        if text is None:
            raise RequestError("invalid_prompt", "prompt: expected a string, found null")
        return text, tokenizer.encode(text)
    return None, _ids(prompt)


def _ids(value: Any) -> list[int]:
    if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, (str, bytes)):
        raise RequestError("invalid_prompt", f"prompt_token_ids: expected a list of ints, found {type(value).__name__}")
    for i, token_id in enumerate(value):
        if not is_id(token_id):
            raise RequestError("invalid_prompt", f"prompt_token_ids[{i}]: expected an int, found {token_id!r}")
    return [int(token_id) for token_id in value]
