"""What a job does with a prompt that is longer than the model takes: refuse, skip, or cut it.

Cuts only raw prompts, at the level of tokens, and keeps a BOS in front. A rendered chat is never cut here.
"""

from __future__ import annotations

from typing import Any

PROMPT_TOO_LONG = "prompt_too_long"


def cut_prompt(
    prompt: Any, policy: str, tokenizer: Any, max_model_len: int, max_tokens: int | None
) -> tuple[dict[str, list[int]], int]:
    """Cut a raw prompt that leaves no room for a single token, so that `max_tokens` fit where that is possible.

    Args:
        prompt: text, or {"prompt_token_ids": ids}.
        policy: truncate_left, truncate_right or truncate_middle: which part is cut away.
        tokenizer: the model's tokenizer.
        max_model_len: longest prompt plus completion.
        max_tokens: longest completion; None is whatever fits.

    Returns:
        The prompt as ids, and the number of tokens that were cut away. At least half of `max_model_len` is kept,
        however long the completion may become.
    """
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt["prompt_token_ids"]
    if len(ids) < max_model_len:
        return {"prompt_token_ids": ids}, 0
    num_kept = max(max_model_len - (max_tokens or 1), max_model_len // 2, 1)
    num_front = 1 if ids[0] == tokenizer.bos_token_id and num_kept > 1 else 0
    kept = ids[:num_front] + _cut(ids[num_front:], policy, num_kept - num_front)
    return {"prompt_token_ids": kept}, len(ids) - len(kept)


def _cut(ids: list[int], policy: str, num_kept: int) -> list[int]:
    if policy == "truncate_left":
        return ids[len(ids) - num_kept :]
    if policy == "truncate_right":
        return ids[:num_kept]
    num_head = (num_kept + 1) // 2
    return ids[:num_head] + ids[len(ids) - (num_kept - num_head) :]
