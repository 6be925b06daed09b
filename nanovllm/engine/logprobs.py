"""Log probabilities of a position, out of its raw logits: before any ban, penalty, filter or temperature.

Owns what is kept of a row of logits when the row itself is thrown away. Knows nothing of requests, caches or text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nanovllm.kernels.scorer import score_rows as score_arrays
from nanovllm.kernels.team import Team


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


def score_rows(team: Team, logits: np.ndarray, wanted: list[tuple[int, int, int, Sequence[int]]]) -> list[RowLogprobs]:
    """Return the log probabilities of positions, each computed by one thread.

    Args:
        team: the threads.
        logits: [rows, vocab_size] float32, C-contiguous, unprocessed.
        wanted: for each position its row of logits, its own token, how many of the best ids, and any other ids.
    """
    asked = [ids for _, _, _, ids in wanted]
    arrays = score_arrays(
        team, logits, np.array([row for row, _, _, _ in wanted], np.int32),
        np.array([own for _, own, _, _ in wanted], np.int32), np.array([best for _, _, best, _ in wanted], np.int32),
        np.fromiter(itertools.chain.from_iterable(asked), np.int32),
        np.cumsum([0, *map(len, asked)], dtype=np.int32),
    )  # fmt: skip
    scored = []
    for ids, logprobs, ranks, count, is_best in zip(*(array.tolist() for array in arrays), strict=True):
        if count == 0:
            scored.append(RowLogprobs([ids[0]], [math.nan], [0], False))
        else:
            scored.append(RowLogprobs(ids[:count], logprobs[:count], ranks[:count], bool(is_best)))
    return scored
