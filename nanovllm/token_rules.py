"""The settings of a request that speak of single tokens, checked and written in the ids of a model.

Owns the way from words and ids in `SamplingParams` to `TokenRules`; knows the tokenizer and the size of the vocabulary.
"""

from __future__ import annotations

import functools

import numpy as np

from nanovllm.engine.processors import ThinkingBudget, TokenRules
from nanovllm.errors import RequestError
from nanovllm.kernels.sampling_step import BIAS_DTYPE, pack_mask
from nanovllm.sampling_params import THINKING_TAGS, SamplingParams
from nanovllm.tokenizer import Tokenizer

DRY_BREAKERS = ("\n", ":", '"', "*")
"""Sequence breakers where a request names none (llama.cpp's)."""
_NUM_KEPT = 64  # rules of so many different settings are kept: usually all requests of a job have the same


def check_vocabulary(params: SamplingParams, vocab_size: int) -> None:
    """Refuse settings that name ids which the model does not have.

    Raises:
        RequestError: code invalid_token_id.
    """
    for name in ("logit_bias", "allowed_token_ids"):
        for token_id in getattr(params, name) or ():
            if not 0 <= token_id < vocab_size:
                raise RequestError(
                    "invalid_token_id",
                    f"{name}: the token id {token_id} is outside the model's vocabulary, expected 0 to "
                    f"{vocab_size - 1}",
                )


def find_thinking_tags(params: SamplingParams, tokenizer: Tokenizer, vocab_size: int) -> tuple[int, int] | None:
    """Return the ids between which a request's budget of thinking counts, None if it has none.

    Raises:
        RequestError: code invalid_sampling; the model has no such ids, or the request's settings exclude the last.
    """
    budget = params.thinking_token_budget
    if budget is None:
        return None
    ids = [tokenizer.token_to_id(tag) for tag in THINKING_TAGS]
    missing = [
        tag for tag, token_id in zip(THINKING_TAGS, ids, strict=True) if token_id is None or token_id >= vocab_size
    ]
    if missing:
        raise RequestError(
            "invalid_sampling",
            f"thinking_token_budget is {budget}, but the model has no single token {' and none '.join(missing)}, "
            "expected both to know what is thinking; leave it out, max_tokens bounds the whole text",
        )
    if params.allowed_token_ids is not None and ids[1] not in params.allowed_token_ids:
        raise RequestError(
            "invalid_sampling",
            f"thinking_token_budget is {budget}, but allowed_token_ids lacks {ids[1]}, the token {THINKING_TAGS[1]} "
            "that ends the thinking; add it or leave one of them out",
        )
    return ids[0], ids[1]


class RuleMaker:
    """Makes the `TokenRules` of requests for one model."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._kept = functools.lru_cache(_NUM_KEPT)(self._make)

    def make(self, params: SamplingParams) -> TokenRules | None:
        """Return a request's rules, None if it has none.

        Raises:
            RequestError: invalid_token_id for an id outside the vocabulary, invalid_sampling for a word without tokens
                and for a budget of thinking that the model cannot keep.
        """
        check_vocabulary(params, self._vocab_size)
        tags = find_thinking_tags(params, self._tokenizer, self._vocab_size)
        breakers = params.dry_sequence_breakers if params.uses_dry else ()
        if not (params.logit_bias or params.allowed_token_ids or params.bad_words or params.uses_dry or tags):
            return None
        return self._kept(
            tuple((params.logit_bias or {}).items()),
            params.allowed_token_ids,
            params.bad_words,
            DRY_BREAKERS if breakers is None else breakers,
            None if tags is None else (params.thinking_token_budget, *tags),
        )

    def _make(
        self,
        biases: tuple[tuple[int, float], ...],
        allowed: tuple[int, ...] | None,
        bad_words: tuple[str, ...],
        breakers: tuple[str, ...],
        thinking: tuple[int, int, int] | None,
    ) -> TokenRules:
        dry_breakers = self._breakers(breakers)
        single = [token_id for token_id, tails in dry_breakers.items() if () in tails]
        return TokenRules(
            None if allowed is None else pack_mask(allowed, self._vocab_size),
            np.array(list(biases), BIAS_DTYPE),
            tuple(dict.fromkeys(ids for word in bad_words for ids in self._spellings(word))),
            dry_breakers,
            pack_mask(single, self._vocab_size) if single else None,
            None if thinking is None else self._thinking(*thinking),
        )

    def _thinking(self, num_tokens: int, start_id: int, end_id: int) -> ThinkingBudget:
        return ThinkingBudget(num_tokens, start_id, end_id, TokenRules(pack_mask((end_id,), self._vocab_size)))

    def _spellings(self, word: str) -> list[tuple[int, ...]]:
        """Return a bad word's ids at the start of a text and after a space."""
        bare = word.lstrip() or word
        spellings = [tuple(self._tokenizer.encode(text, add_special_tokens=False)) for text in (bare, " " + bare)]
        if not any(spellings):
            raise RequestError("invalid_sampling", f"bad_words: {word!r} has no tokens, expected text")
        return [ids for ids in spellings if ids and max(ids) < self._vocab_size]

    def _breakers(self, texts: tuple[str, ...]) -> dict[int, tuple[tuple[int, ...], ...]]:
        """Return the tokens that contain a breaker, or begin one that further tokens complete."""
        found: dict[int, list[tuple[int, ...]]] = {}
        for text in texts:
            starts = {text[:length]: self._tail(text[length:]) for length in range(1, len(text))}
            for token_id, piece in enumerate(self._pieces):
                if text in piece:
                    found.setdefault(token_id, []).append(())
                    continue
                for start, tail in starts.items():
                    if tail and piece.endswith(start):
                        found.setdefault(token_id, []).append(tail)
        return {token_id: tuple(tails) for token_id, tails in found.items()}

    def _tail(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    @functools.cached_property
    def _pieces(self) -> list[str]:
        """Text of every id, with the space that opens it."""
        return [self._piece(token_id) for token_id in range(self._vocab_size)]

    def _piece(self, token_id: int) -> str:
        spelled = self._tokenizer.id_to_token(token_id)
        if spelled is None:
            return ""
        text = self._tokenizer.decode([token_id], skip_special_tokens=False)
        # Decoders of sentencepiece's kind drop the space that opens a text.
        return " " + text if spelled.startswith("\u2581") and not text.startswith(" ") else text
