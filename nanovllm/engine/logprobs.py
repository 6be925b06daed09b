"""Log probabilities of a position, out of its raw logits: before any ban, penalty, filter or temperature.

Owns what is kept of a row of logits when the row itself is thrown away. Knows nothing of requests, caches or text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nanovllm.kernels.ops import log_sum_exp


@dataclass(slots=True)
class RowLogprobs:
    """Some log probabilities of one position; the position's own token is always the first.

    Attributes:
        token_ids: distinct ids: the own token, then the best ones in order, then the ids asked for.
        logprobs: one for each id. ranks: 1 + the number of ids with a larger logit.
        is_best: whether the own token is what a greedy request takes (the lowest id of equal logits).
    """

    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]
    is_best: bool

    @property
    def is_finite(self) -> bool:
        """Whether the row was made of numbers; a row with NaN or +inf has no probabilities."""
        return not any(math.isnan(value) for value in self.logprobs)


def score_row(logits: np.ndarray, token_id: int, num_best: int = 0, asked_ids: Iterable[int] = ()) -> RowLogprobs:
    """Return the log probabilities of a position's own token, of its `num_best` best and of the ids asked for.

    Args:
        logits: [vocab_size] float32, contiguous, unprocessed.
        token_id: the position's own token.
        num_best: how many of the largest.
        asked_ids: any others.
    """
    top, log_sum = log_sum_exp(logits)
    if not (math.isfinite(top) and math.isfinite(log_sum)):
        return RowLogprobs([token_id], [math.nan], [0], False)
    ranks = {token_id: _rank(logits, token_id)}
    if num_best:
        ranks |= dict(zip(*_best(logits, num_best), strict=True))
    for asked in asked_ids:
        if asked not in ranks:
            ranks[asked] = _rank(logits, asked)
    # As the kernel does it: the difference in double, then one rounding.
    logprobs = (logits[list(ranks)].astype(np.float64) - log_sum).astype(np.float32).tolist()
    is_best = ranks[token_id] == 1 and int(logits.argmax()) == token_id
    return RowLogprobs(list(ranks), logprobs, list(ranks.values()), is_best)


def _rank(logits: np.ndarray, token_id: int) -> int:
    return 1 + int(np.count_nonzero(logits > logits[token_id]))


def _best(logits: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """Ids and ranks of the largest logits, best first, of equal ones the lowest id first."""
    count = min(count, len(logits))
    bound = np.partition(logits, len(logits) - count)[len(logits) - count]
    candidates = np.flatnonzero(logits >= bound)
    falling = -logits[candidates]
    order = np.argsort(falling, kind="stable")[:count]
    ranks = 1 + np.searchsorted(falling[order], falling[order], side="left")
    return candidates[order].tolist(), ranks.tolist()
