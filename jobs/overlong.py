"""What a job does with a prompt that is longer than the model takes: refuse, skip, or cut it.

A raw prompt is cut at the level of tokens, and keeps a BOS in front. Of a chat only the text of one message is cut, and
the conversation is rendered again, so that its frame stays whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jobs.prompts import Chat, Prompt

PROMPT_TOO_LONG = "prompt_too_long"


def fit_prompt(
    prompt: Prompt, policy: str, tokenizer: Any, max_model_len: int, max_tokens: int | None
) -> tuple[dict[str, list[int]], int]:
    """Cut a prompt that leaves no room for a single token, so that `max_tokens` fit where that is possible.

    Args:
        prompt: the prompt.
        policy: truncate_left, truncate_right or truncate_middle: which part is cut away.
        tokenizer: the model's tokenizer.
        max_model_len: longest prompt plus completion.
        max_tokens: longest completion; None is whatever fits.

    Returns:
        The prompt as ids, and the number of tokens that were cut away; 0 for a chat that cannot be cut enough. At least
        half of `max_model_len` is kept of a raw prompt, however long the completion may become.

    Raises:
        RequestError: the chat template refuses the conversation with less text in it.
    """
    if prompt.chat is None:
        return cut_prompt(prompt.value, policy, tokenizer, max_model_len, max_tokens)
    ids = prompt.value["prompt_token_ids"]
    if len(ids) < max_model_len:
        return prompt.value, 0
    kept = _cut_chat(prompt.chat, policy, tokenizer, _room(max_model_len, max_tokens))
    if kept is None:
        return prompt.value, 0
    return {"prompt_token_ids": kept}, len(ids) - len(kept)


def cut_prompt(
    prompt: Any, policy: str, tokenizer: Any, max_model_len: int, max_tokens: int | None
) -> tuple[dict[str, list[int]], int]:
    """Cut a raw prompt, text or {"prompt_token_ids": ids}; arguments and result as in `fit_prompt`."""
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt["prompt_token_ids"]
    if len(ids) < max_model_len:
        return {"prompt_token_ids": ids}, 0
    num_kept = _room(max_model_len, max_tokens)
    num_front = 1 if ids[0] == tokenizer.bos_token_id and num_kept > 1 else 0
    kept = ids[:num_front] + _cut(ids[num_front:], policy, num_kept - num_front)
    return {"prompt_token_ids": kept}, len(ids) - len(kept)


def _room(max_model_len: int, max_tokens: int | None) -> int:
    return max(max_model_len - (max_tokens or 1), max_model_len // 2, 1)


def _cut_chat(chat: Chat, policy: str, tokenizer: Any, room: int) -> list[int] | None:
    """Render a conversation with as much of its longest user text as fits; None when not even one character does."""
    places = list(_user_texts(chat.messages))
    if not places:
        return None
    message, part, text = max(places, key=lambda place: len(place[2]))
    best, num_kept, num_too_many = None, 0, len(text)
    while num_too_many - num_kept > 1:
        middle = (num_kept + num_too_many) // 2
        messages = _with_text(chat.messages, message, part, _cut(text, policy, middle))
        _, ids = tokenizer.encode_chat(messages, **chat.options)
        if len(ids) <= room:
            best, num_kept = ids, middle
        else:
            num_too_many = middle
    return best


def _user_texts(messages: list[Any]) -> Iterator[tuple[int, int | None, str]]:
    """Give the texts of users as (message, part of its content or None, text)."""
    for index, message in enumerate(messages):
        content = message.get("content")
        if message.get("role") != "user":
            continue
        if isinstance(content, str):
            yield index, None, content
        elif isinstance(content, list):
            for number, part in enumerate(content):
                if isinstance(part, dict) and isinstance(part.get("text"), str):
                    yield index, number, part["text"]


def _with_text(messages: list[Any], index: int, part: int | None, text: str) -> list[Any]:
    messages = list(messages)
    message = dict(messages[index])
    if part is None:
        message["content"] = text
    else:
        message["content"] = list(message["content"])
        message["content"][part] = {**message["content"][part], "text": text}
    messages[index] = message
    return messages


def _cut(whole: Any, policy: str, num_kept: int) -> Any:
    """Cut a list of ids, or a text."""
    if policy == "truncate_left":
        return whole[len(whole) - num_kept :]
    if policy == "truncate_right":
        return whole[:num_kept]
    num_head = (num_kept + 1) // 2
    return whole[:num_head] + whole[len(whole) - (num_kept - num_head) :]
