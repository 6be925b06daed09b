"""What a request's settings say about its next token, in token ids: bans, repetitions and what ends a loop.

Owns the per-step part that touches ids alone; what touches logits is the sampling kernel's. Every answer is a function
of the sequence's ids, so neither its neighbours nor a preemption can change it. Must not know texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from nanovllm.kernels.sampling_step import BIAS_DTYPE, DRY_UNLIMITED

REPETITION = "repetition"
"""The stop reason of a completion that `ends_in_repetition` has ended."""


@dataclass(frozen=True, slots=True, eq=False)
class ThinkingBudget:
    """How many tokens a request may think in a block, between an id that opens it and one that closes it.

    Attributes:
        num_tokens: most of them. start_id, end_id: open and close a block.
        end_rules: stand in place of the request's own rules where the block must be closed.
    """

    num_tokens: int
    start_id: int
    end_id: int
    end_rules: TokenRules


class Thinking:
    """Where one completion stands with its budget: a function of prompt and completion so far.

    Attributes:
        budget: the request's.
        num_tokens: how many tokens of the open block the completion has; None outside of a block.
    """

    __slots__ = ("budget", "num_tokens")

    def __init__(self, budget: ThinkingBudget, prompt_ids: list[int]):
        self.budget = budget
        tags = (budget.start_id, budget.end_id)
        newest = next((token_id for token_id in reversed(prompt_ids) if token_id in tags), budget.end_id)
        self.num_tokens = 0 if newest == budget.start_id else None

    @property
    def must_end(self) -> bool:
        """Whether the next token has to close the block."""
        return self.num_tokens is not None and self.num_tokens >= self.budget.num_tokens

    def accept(self, token_id: int) -> None:
        """Move on by a token of the completion; a block that is opened again while it is open goes on."""
        if token_id == self.budget.end_id:
            self.num_tokens = None
        elif self.num_tokens is not None:
            self.num_tokens += 1
        elif token_id == self.budget.start_id:
            self.num_tokens = 0


@dataclass(frozen=True, slots=True, eq=False)
class TokenRules:
    """A request's settings in the form of the vocabulary, made once and shared by its samples.

    Attributes:
        mask: bits of the ids that are allowed, as the kernel takes them; None: all are.
        biases: of `BIAS_DTYPE`.
        bad_words: token sequences of which the last id is banned where the completion ends in the others.
        dry_breakers: by first id, what must follow it to make a sequence breaker; () where it is one by itself.
        breaker_mask: bits of the ids that are a breaker by themselves, which DRY never penalizes; None: there are none.
        thinking: the budget of thinking; None: there is none.
    """

    mask: np.ndarray | None = None
    biases: np.ndarray = field(default_factory=lambda: np.empty(0, BIAS_DTYPE))
    bad_words: tuple[tuple[int, ...], ...] = ()
    dry_breakers: Mapping[int, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    breaker_mask: np.ndarray | None = None
    thinking: ThinkingBudget | None = None

    def banned_after(self, token_ids: list[int], num_prompt: int) -> list[int]:
        """Return the ids that would complete a bad word; only the completion counts as its beginning."""
        num_completion = len(token_ids) - num_prompt
        banned = []
        for word in self.bad_words:
            length = len(word) - 1
            if length <= num_completion and tuple(token_ids[len(token_ids) - length :]) == word[:-1]:
                banned.append(word[-1])
        return banned

    def dry_limit(self, token_ids: list[int], last_n: int) -> int:
        """Return how many ids came after the newest sequence breaker, of the last_n newest (-1: of all)."""
        breakers = self.dry_breakers
        if not breakers:
            return DRY_UNLIMITED
        count = len(token_ids) if last_n < 0 else min(last_n, len(token_ids))
        for i in range(len(token_ids) - 1, len(token_ids) - count - 1, -1):
            matching = [
                len(tail)
                for tail in breakers.get(token_ids[i], ())
                if tuple(token_ids[i + 1 : i + 1 + len(tail)]) == tail
            ]
            if matching:
                return len(token_ids) - 1 - i - max(matching)
        return DRY_UNLIMITED


def ends_in_repetition(token_ids: list[int], num_prompt: int, detection: Mapping[str, int]) -> bool:
    """Return whether a completion ends in a pattern that comes min_count times in a row.

    For each size of pattern this compares one id, and the rest only where that is equal.
    """
    num_completion, count = len(token_ids) - num_prompt, detection["min_count"]
    for size in range(detection["min_pattern_size"], detection["max_pattern_size"] + 1):
        length = size * count
        if length > num_completion:
            return False
        if token_ids[-1] == token_ids[-1 - size] and token_ids[-length:-size] == token_ids[size - length :]:
            return True
    return False


def step_biases(rules: list[TokenRules | None]) -> dict[str, np.ndarray]:
    """Return biases of a step's rows as the kernel takes them; nothing where no row has any."""
    biases = [np.empty(0, BIAS_DTYPE) if one is None else one.biases for one in rules]
    if not any(map(len, biases)):
        return {}
    return {
        "biases": np.concatenate(biases),
        "cu_biases": np.cumsum([0, *map(len, biases)]).astype(np.int32),
    }
