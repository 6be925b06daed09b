"""Log probabilities of a position, out of its raw logits: before any ban, penalty, filter or temperature.

Owns what is kept of a row of logits when the row itself is thrown away. Knows nothing of requests, caches or text.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nanovllm.kernels.scorer import score_rows as score_arrays
from nanovllm.kernels.team import Team
from nanovllm.sampling_params import WHOLE_VOCABULARY


@dataclass(slots=True)
class RowLogprobs:
    """Some log probabilities of one position; the position's own token is always the first.

    Attributes:
        token_ids: distinct ids: the own token, then the best ones in order, then the ids asked for.
        logprobs: one for each id. ranks: 1 + the number of ids with a larger logit.
        is_best: whether the own token is what a greedy request takes (the lowest id of equal logits).
    """

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    ranks: Sequence[int]
    is_best: bool

    @property
    def best_id(self) -> int:
        """What a greedy request takes; known where at least one of the best was kept."""
        return self.token_ids[0 if self.is_best else 1]

    @property
    def is_finite(self) -> bool:
        """Whether the row was made of numbers; a row with NaN or +inf has no probabilities."""
        return not any(math.isnan(value) for value in self.logprobs)


def score_rows(team: Team, logits: np.ndarray, wanted: list[tuple[int, int, int, Sequence[int]]]) -> list[RowLogprobs]:
    """Return the log probabilities of positions, each computed by one thread (whole vocabularies by the caller's).

    Args:
        team: the threads.
        logits: [rows, vocab_size] float32, C-contiguous, unprocessed.
        wanted: for each position its row of logits, its own token, how many of the best ids (`WHOLE_VOCABULARY`: all),
            and any other ids.
    """
    asked = [ids for _, _, _, ids in wanted]
    arrays = score_arrays(
        team, logits, np.array([row for row, _, _, _ in wanted], np.int32),
        np.array([own for _, own, _, _ in wanted], np.int32), np.array([best for _, _, best, _ in wanted], np.int32),
        np.fromiter(itertools.chain.from_iterable(asked), np.int32),
        np.cumsum([0, *map(len, asked)], dtype=np.int32),
    )  # fmt: skip
    scored = []
    columns = zip(wanted, *(column.tolist() for column in arrays), strict=True)
    for (row, own, num_best, _), ids, logprobs, ranks, count, is_best in columns:
        if count == 0:
            scored.append(RowLogprobs([ids[0]], [math.nan], [0], False))
        elif num_best == WHOLE_VOCABULARY:
            scored.append(_score_whole(logits[row], own, bool(is_best)))
        else:
            scored.append(RowLogprobs(ids[:count], logprobs[:count], ranks[:count], bool(is_best)))
    return scored


def _score_whole(logits: np.ndarray, own: int, is_best: bool) -> RowLogprobs:
    """Score every id of a row of numbers; the result takes 12 bytes an id, since it is kept until the request ends."""
    best_first = np.argsort(-logits, kind="stable")  # of equal logits the lowest id first
    falling = logits[best_first].astype(np.float64)
    ranks = 1 + np.searchsorted(-falling, -falling, side="left")
    logprobs = falling - falling[0] - np.log(np.exp(falling - falling[0]).sum())
    place = int(np.flatnonzero(best_first == own)[0])
    order = np.concatenate(([place], np.arange(place), np.arange(place + 1, len(logits))))
    return RowLogprobs(
        array("i", best_first[order].astype(np.intc).tobytes()),
        array("f", logprobs[order].astype(np.float32).tobytes()),
        array("i", ranks[order].astype(np.intc).tobytes()),
        is_best,
    )
