"""Make one answer or one probability of several samples of a row. Knows no text and no scorer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb

from nanovllm import ConfigError


def majority_vote(answers: Sequence[str | None]) -> str | None:
    """Give the most frequent answer, the earliest of those that are equally frequent.

    Samples from which nothing was extracted (None) have no vote; without any vote the answer is None.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.__getitem__, default=None)  # a Counter keeps the order in which answers came


def maj_at_k(answers: Sequence[str | None], k: int) -> str | None:
    """Give the majority's answer of the first k samples. Raises ConfigError if there are fewer."""
    _check("maj_at_k", len(answers), k)
    return majority_vote(answers[:k])


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate without bias how likely at least one of k samples is right, from n samples of which c are.

    Source: Chen et al. 2021, "Evaluating large language models trained on code", equation 1.

    Raises:
        ConfigError: k is not from 1 to n, or c not from 0 to n.
    """
    _check("pass_at_k", n, k)
    if not 0 <= c <= n:
        raise ConfigError(f"pass_at_k: {c} of {n} samples cannot be right, expected a count from 0 to {n}")
    return (comb(n, k) - comb(n - c, k)) / comb(n, k)


def _check(metric: str, num_samples: int, k: int) -> None:
    if not 1 <= k <= num_samples:
        raise ConfigError(
            f"{metric}: {k} is not from 1 to {num_samples}, a row's number of samples: lower it or raise sampling.n"
        )
