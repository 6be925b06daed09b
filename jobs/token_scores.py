"""Log probabilities of a completion as JSON values. Owns their shapes: ours, and OpenAI's for both endpoints."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

# JSON has no infinity; OpenAI's readers know this number for "impossible".
_IMPOSSIBLE = -9999.0


def own_shape(positions: list[Mapping[int, Any] | None]) -> list[dict[str, Any] | None]:
    """Give each position's token with its alternatives under `top`, the most likely first.

    Args:
        positions: a {token id: `nanovllm.Logprob`} for each token, the token itself first; None where there is none.
    """
    return [None if position is None else _own_position(position) for position in positions]


def chat_shape(positions: list[Mapping[int, Any]], num_top: int, token_ids: Collection[int] = ()) -> dict[str, Any]:
    """Give the `logprobs` of a choice of `/v1/chat/completions`: `num_top` alternatives and those of `token_ids`."""
    content = []
    for position in positions:
        chosen = next(iter(position.values()))
        others = [_chat_token(one) for one in _best(position, num_top, token_ids)]
        content.append({**_chat_token(chosen), "top_logprobs": others})
    return {"content": content, "refusal": None}


def text_shape(positions: list[Mapping[int, Any]], num_top: int, token_ids: Collection[int] = ()) -> dict[str, Any]:
    """Give the `logprobs` of a choice of `/v1/completions`: `num_top` alternatives and those of `token_ids`."""
    chosen = [next(iter(position.values())) for position in positions]
    tokens = [_text(one) for one in chosen]
    offsets, end = [], 0
    for token in tokens:
        offsets.append(end)
        end += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [_number(one) for one in chosen],
        "top_logprobs": [
            {_text(one): _number(one) for one in _best(position, num_top, token_ids)} for position in positions
        ],
        "text_offset": offsets,
    }


def id_shape(positions: list[Mapping[int, Any] | None]) -> list[dict[str, Any] | None]:
    """Give each position's tokens by their ids, as vLLM has `prompt_logprobs`."""
    return [None if position is None else {str(i): _by_id(position[i]) for i in position} for position in positions]


def _by_id(score: Any) -> dict[str, Any]:
    return {"logprob": _number(score), "rank": score.rank, "decoded_token": score.decoded_token}


def _own_position(position: Mapping[int, Any]) -> dict[str, Any]:
    token_id = next(iter(position))
    others = sorted(position, key=lambda one: (-_number(position[one]), one))
    return {**_own_token(token_id, position[token_id]), "top": [_own_token(one, position[one]) for one in others]}


def _own_token(token_id: int, score: Any) -> dict[str, Any]:
    return {"token_id": token_id, "token": score.decoded_token, "logprob": _number(score), "rank": score.rank}


def _chat_token(score: Any) -> dict[str, Any]:
    text = _text(score)
    return {"token": text, "logprob": _number(score), "bytes": list(text.encode("utf-8", "surrogatepass"))}


def _best(position: Mapping[int, Any], num_top: int, token_ids: Collection[int]) -> list[Any]:
    ranked = sorted(position, key=lambda token_id: -_number(position[token_id]))
    return [position[token_id] for i, token_id in enumerate(ranked) if i < num_top or token_id in token_ids]


def _text(score: Any) -> str:
    return score.decoded_token or ""


def _number(score: Any) -> float:
    return score.logprob if math.isfinite(score.logprob) else _IMPOSSIBLE
