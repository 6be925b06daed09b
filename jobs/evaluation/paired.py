"""Tests on two scores of the same rows: is the difference more than chance?

Knows arrays only. Two runs over the same questions are compared row by row, because what makes a question hard is hard
for both; that takes most of the noise out of the difference. docs/statistics.md has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.evaluation.statistics import (
    CONFIDENCE,
    bootstrap_replicas,
    cluster_numbers,
    clustered_stderr,
    is_binary,
    mean_stderr,
)

_NUM_RESAMPLES = 2000
_ROUNDING = 1e-9  # differences that are this near to each other, as a part of their mean, are equal


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar's test on pairs of 0/1 values.

    Attributes:
        num_gained: pairs with 0 in a and 1 in b.
        num_lost: pairs with 1 in a and 0 in b.
        p_exact: two-sided p-value of the binomial distribution.
        statistic, p_chi_square: chi-square with continuity correction, one degree of freedom.
    """

    num_gained: int
    num_lost: int
    p_exact: float
    statistic: float
    p_chi_square: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How b differs from a over the rows of both. What is not known is NaN.

    Attributes:
        value: mean of b - a.
        stderr: its standard error, cluster-robust where rows have clusters.
        low, high: its interval, 95 % unless asked otherwise, of Student's distribution.
        n: the number of pairs.
        p_value: that of `method`: how often chance alone gives at least this difference, in either direction.
        method: "McNemar" for 0/1 values, else "paired t" or "clustered t"; "sign" where all pairs differ by the same,
            which leaves the other tests nothing to go by; "none" where nothing can be said.
        p_t, p_bootstrap, p_mcnemar: all that apply, the last None where it does not.
        num_higher, num_lower, num_equal: pairs in which b is higher, lower, the same.
    """

    value: float
    stderr: float
    low: float
    high: float
    n: int
    p_value: float
    method: str
    p_t: float
    p_bootstrap: float
    p_mcnemar: float | None
    num_higher: int
    num_lower: int
    num_equal: int


def mcnemar(a: Sequence[float], b: Sequence[float]) -> McNemar:
    """Test whether b is right more or less often than a on the same rows.

    Args:
        a: [n], 0 or 1.
        b: [n], 0 or 1, of the same rows.

    Raises:
        ValueError: other values, or arrays of different lengths.

    Source: Q. McNemar, Psychometrika 12, 1947; the exact test is the sign test on the pairs that differ.
    """
    from scipy.special import bdtr, chdtrc

    a, b = _pair(a, b)
    if not (is_binary(a) and is_binary(b)):
        raise ValueError("McNemar's test is for values of 0 and 1")
    gained, lost = int((b > a).sum()), int((b < a).sum())
    num = gained + lost
    if num == 0:
        return McNemar(0, 0, 1.0, 0.0, 1.0)
    p_exact = min(1.0, 2 * float(bdtr(min(gained, lost), num, 0.5)))
    statistic = max(abs(gained - lost) - 1, 0) ** 2 / num
    return McNemar(gained, lost, p_exact, statistic, float(chdtrc(1, statistic)))


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> PairedDifference:
    """Compare two scores of the same rows.

    Args:
        a: [n], the scores of each row.
        b: [n], the other scores of the same rows.
        clusters: [n], what rows that depend on each other share; McNemar's test, which takes rows as independent, is
            then left out.
        confidence: of the interval.
        seed: of the bootstrap.

    Raises:
        ValueError: arrays of different lengths, or without rows.
    """
    a, b = _pair(a, b)
    n = len(a)
    if n == 0:
        raise ValueError("there are no pairs to compare")
    differences = b - a
    members = None if clusters is None else cluster_numbers(clusters, n)
    stderr = mean_stderr(differences) if members is None else clustered_stderr(differences, members)
    num_units = n if members is None else int(members.max()) + 1
    value = float(differences.mean())
    low, high, p_t = _student(value, stderr, num_units - 1, confidence)
    p_mcnemar = mcnemar(a, b).p_exact if members is None and is_binary(a) and is_binary(b) else None
    are_equal = num_units > 1 and _are_equal(differences)
    if are_equal:
        p_t = math.nan
    method, p_value = ("paired t" if members is None else "clustered t"), p_t
    if p_mcnemar is not None:
        method, p_value = "McNemar", p_mcnemar
    elif are_equal:
        method, p_value = "sign", 2.0 ** (1 - num_units)
    elif math.isnan(p_t):
        method = "none"
    higher, lower = int((differences > 0).sum()), int((differences < 0).sum())
    return PairedDifference(
        value, stderr, low, high, n, p_value, method,
        p_t, bootstrap_p(differences, members, seed), p_mcnemar, higher, lower, n - higher - lower,
    )  # fmt: skip


def bootstrap_p(differences: np.ndarray, members: np.ndarray | None = None, seed: int = 0) -> float:
    """Give the share of resamples under no difference that stray at least as far as the differences do.

    The differences are moved to mean 0 and drawn with replacement, whole clusters at a time where there are any. One is
    added to both counts, so that no p-value is 0. NaN where all differences are equal and not 0, so that all resamples
    are alike, and where there is only one to draw from.

    Source: B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 16.

    Args:
        differences: [n].
        members: [n], the number of each row's cluster.
        seed: of the draws.
    """
    observed = differences.mean()
    centered = differences - observed
    sizes = None if members is None else np.bincount(members)
    if len(differences if sizes is None else sizes) < 2 or _are_equal(differences):
        return math.nan
    if sizes is None:
        replicas = bootstrap_replicas(centered, lambda drawn: drawn.mean(axis=1), seed, _NUM_RESAMPLES, vectorized=True)
    else:
        units = np.stack([np.bincount(members, weights=centered), sizes], axis=1)  # [num_clusters, 2]
        replicas = bootstrap_replicas(units, _mean_of_clusters, seed, _NUM_RESAMPLES, vectorized=True)
    # a resample that equals the sample must count, whatever the rounding
    num_far = int((np.abs(replicas) >= abs(observed) * (1 - _ROUNDING)).sum())
    return (1 + num_far) / (1 + _NUM_RESAMPLES)


def _are_equal(differences: np.ndarray) -> bool:
    """Whether all are the same number other than 0."""
    return abs(differences[0]) > 0 and float(np.ptp(differences)) <= _ROUNDING * abs(differences[0])


def _mean_of_clusters(drawn: np.ndarray) -> np.ndarray:
    totals = drawn.sum(axis=1)
    return totals[:, 0] / totals[:, 1]


def _student(value: float, stderr: float, freedom: int, confidence: float) -> tuple[float, float, float]:
    """Give the ends of the interval and the two-sided p-value; NaN where nothing can be said."""
    from scipy.special import stdtr, stdtrit

    if math.isnan(stderr):
        return math.nan, math.nan, math.nan
    if stderr == 0:
        return value, value, 1.0 if value == 0 else math.nan
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * stderr
    return value - half, value + half, 2 * float(stdtr(freedom, -abs(value) / stderr))


def _pair(a: Sequence[float], b: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected two vectors of one length, found shapes {a.shape} and {b.shape}")
    return a, b
