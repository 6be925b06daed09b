"""Numbers with their error bars: means, ratios and perplexities of rows, and statistics that have no formula.

Knows arrays only, no runs and no metrics. docs/statistics.md has the formulas and says when which one is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
"""Of every interval that is not asked for otherwise."""

_MAX_DRAWS = 1 << 22
"""Indices that the bootstrap holds at once: 32 MiB, whatever the number of rows and resamples."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number from a sample of rows, with what is known of its error. What is not known is NaN.

    Attributes:
        value: the number.
        stderr: its standard error.
        low, high: the 95 % interval.
        n: the number of rows.
        method: how the interval was made: "normal", "wilson", "clustered", "clustered wilson", "delta",
            "bootstrap", or "none".
        num_clusters: the number of clusters that the error is made from; None where rows are independent.
    """

    value: float
    stderr: float
    low: float
    high: float
    n: int
    method: str
    num_clusters: int | None = None


def estimate_mean(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """Estimate a mean.

    Args:
        values: [n], the rows' scores, none of them NaN.
        clusters: [n], what rows that depend on each other share. Clusters of one row each are no clusters.

    Returns:
        With clusters the cluster-robust standard error, else the sample's standard deviation / sqrt(n). The interval is
        normal; of 0/1 values it is Wilson's, which keeps within 0 and 1 and is right near them. With clusters that is
        Wilson's of as many independent rows as have the same error; of as many rows as there are clusters where all
        rows of all of them are right, or wrong, which leaves no error to go by. Clusters are few, so the quantile is
        Student's with one degree of freedom less than there are clusters.
    """
    values = _vector(values)
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0, "none")
    mean = float(values.mean())
    members = None if clusters is None else cluster_numbers(clusters, n)
    if members is not None:
        stderr, num_clusters = clustered_stderr(values, members), int(members.max()) + 1
        if math.isnan(stderr) or not is_binary(values):
            return _normal(mean, stderr, n, "clustered", num_clusters)
        low, high = clustered_wilson_interval(mean, stderr, num_clusters)
        return Estimate(mean, stderr, low, high, n, "clustered wilson", num_clusters)
    stderr = mean_stderr(values)
    if is_binary(values):
        return Estimate(mean, stderr, *wilson_interval(mean, n), n, "wilson")
    return _normal(mean, stderr, n, "normal")


def estimate_perplexity(
    logprobs: Sequence[float], counts: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """Estimate exp(-sum of log likelihoods / sum of counts), the perplexity of all texts together.

    Args:
        logprobs: [n], natural log likelihood of each text.
        counts: [n], its tokens, words or bytes.
        clusters: [n], what texts that depend on each other share.

    Returns:
        The standard error is the delta method's. The interval is that of the logarithm, taken to the power of e, since
        the ratio is much nearer to normal than its exponential, and a perplexity is never negative.
    """
    ratio, values = linearized_ratio(-_vector(logprobs), counts)
    nats = estimate_mean(values, clusters)
    stderr = nats.stderr
    if not nats.n:
        return nats
    low, high = normal_interval(ratio, stderr, num_clusters=nats.num_clusters)
    value = exp(ratio)
    method = "none" if math.isnan(stderr) else "delta"
    return Estimate(value, value * stderr, exp(low), exp(high), nats.n, method, nats.num_clusters)


def linearized_ratio(totals: Sequence[float], weights: Sequence[float]) -> tuple[float, np.ndarray]:
    """Give R = sum(totals) / sum(weights), and a value for each row that stands for its part in R.

    The values are R + (totals - R * weights) / mean(weights). Their mean is R, and the standard error of their mean is
    that of R to first order, so that all that is known of means serves ratios too. With equal weights they are
    totals / weights.

    Source: W. G. Cochran, Sampling Techniques, 3rd edition 1977, chapter 6, variance of a ratio.
    """
    totals, weights = _vector(totals), _vector(weights)
    _check_length("weights", weights, len(totals))
    total_weight = float(weights.sum())
    if not total_weight:
        return math.nan, np.full(len(totals), math.nan)
    ratio = float(totals.sum()) / total_weight
    return ratio, ratio + (totals - ratio * weights) * (len(weights) / total_weight)


def bootstrap(
    rows: np.ndarray,
    statistic: Callable[[np.ndarray], Any],
    seed: int = 0,
    num: int = 1000,
) -> Estimate:
    """Estimate any statistic of rows by resampling them.

    Args:
        rows: [n, ...], one entry a row.
        statistic: takes an array like `rows`, gives a number.
        seed: of the draws; the same seed gives the same estimate.
        num: how many resamples.

    Returns:
        The value is that of the rows themselves; the standard error is the resamples' standard deviation, the interval
        lies between their percentiles 2.5 and 97.5.

    Source: B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 13.
    """
    rows = np.asarray(rows)
    n = len(rows)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0, "none")
    value = float(statistic(rows))
    if n == 1:
        return Estimate(value, math.nan, math.nan, math.nan, 1, "none")
    replicas = bootstrap_replicas(rows, statistic, seed, num)
    if not np.isfinite(replicas).all():
        return Estimate(value, math.nan, math.nan, math.nan, n, "none")
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(replicas, [tail, 100 - tail])
    return Estimate(value, float(replicas.std(ddof=1)), float(low), float(high), n, "bootstrap")


def bootstrap_replicas(
    rows: np.ndarray, statistic: Callable[[np.ndarray], Any], seed: int, num: int, vectorized: bool = False
) -> np.ndarray:
    """Give a statistic of `num` resamples, [num].

    Arguments as of `bootstrap`, but that with `vectorized` the statistic takes many resamples at once, [k, n, ...], and
    gives [k]. The draws are the same.
    """
    n = len(rows)
    generator = np.random.default_rng(seed)
    num_at_once = max(_MAX_DRAWS // max(rows.size, 1), 1) if vectorized else 1
    replicas = np.empty(num)
    for start in range(0, num, num_at_once):
        stop = min(start + num_at_once, num)
        drawn = rows[generator.integers(0, n, (stop - start, n))]
        replicas[start:stop] = statistic(drawn) if vectorized else statistic(drawn[0])
    return replicas


def mean_stderr(values: np.ndarray) -> float:
    """Give the standard error of a mean: the sample's standard deviation (n - 1) / sqrt(n). NaN for a single row."""
    n = len(values)
    return float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan


def clustered_stderr(values: np.ndarray, members: np.ndarray) -> float:
    """Give the standard error of a mean of rows that depend on each other within clusters.

    Squared it is SE^2 + 1/n^2 * sum over clusters of the sum over pairs i != j of (x_i - mean) * (x_j - mean), where SE
    is that of independent rows. NaN for a single cluster, which tells nothing of how clusters differ.

    Source: E. Miller, Adding Error Bars to Evals, 2024, arXiv 2411.00640, on clustered standard errors.

    Args:
        values: [n].
        members: [n], the number of each row's cluster.
    """
    n = len(values)
    deviations = values - values.mean()
    totals = np.bincount(members, weights=deviations)
    if len(totals) < 2:
        return math.nan
    # the sum over pairs is totals^2 - sum of squares; the squares are put together with SE^2, so nothing cancels
    squares = float(deviations @ deviations)
    return math.sqrt(float(totals @ totals) / n**2 + squares / (n**2 * (n - 1)))


def cluster_numbers(clusters: Sequence[Hashable], n: int) -> np.ndarray | None:
    """Number the clusters from 0, [n]; None when each has one row."""
    _check_length("clusters", clusters, n)
    numbers: dict[Hashable, int] = {}
    keys = clusters.tolist() if isinstance(clusters, np.ndarray) else clusters
    members = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.intp)
    return None if len(numbers) == n and n > 1 else members


def effective_number(share: float, stderr: float) -> float:
    """Give how many independent 0/1 values have this standard error.

    Source: L. Kish, Survey Sampling, 1965, on the design effect.
    """
    return share * (1 - share) / stderr**2


def wilson_interval(
    share: float, n: float, confidence: float = CONFIDENCE, num_clusters: int | None = None
) -> tuple[float, float]:
    """Give the score interval of a share of n independent 0/1 values.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.

    Args:
        share: how many of them are 1.
        n: their number, or how many independent ones have the same error.
        confidence: how much of a distribution lies within.
        num_clusters: the number of clusters that the error was made from.
    """
    z2 = _quantile(confidence, num_clusters) ** 2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    # the ends are 0 and 1 where rounding would miss them
    return (0.0 if share == 0 else center - half), (1.0 if share == 1 else center + half)


def clustered_wilson_interval(
    share: float, stderr: float, num_clusters: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Give the score interval of a share of 0/1 values in clusters.

    Source: E. L. Korn and B. I. Graubard, Confidence intervals for proportions with small expected number of positive
    counts estimated from survey data, Survey Methodology 24, 1998, on the effective number and Student's quantile.
    """
    n = effective_number(share, stderr) if stderr else num_clusters
    return wilson_interval(share, n, confidence, num_clusters)


def normal_interval(
    value: float, stderr: float, confidence: float = CONFIDENCE, num_clusters: int | None = None
) -> tuple[float, float]:
    """Give the interval of a number whose error is normal, or Student's if it was made from clusters."""
    half = _quantile(confidence, num_clusters) * stderr
    return value - half, value + half


def is_binary(values: np.ndarray) -> bool:
    """Whether all values are 0 or 1."""
    return bool(((values == 0) | (values == 1)).all())


def exp(nats: float) -> float:
    """Give e to the power of `nats`; infinity beyond double precision."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def _normal(mean: float, stderr: float, n: int, method: str, num_clusters: int | None = None) -> Estimate:
    if math.isnan(stderr):
        return Estimate(mean, stderr, math.nan, math.nan, n, "none", num_clusters)
    low, high = normal_interval(mean, stderr, num_clusters=num_clusters)
    return Estimate(mean, stderr, low, high, n, method, num_clusters)


def _quantile(confidence: float, num_clusters: int | None = None) -> float:
    """Give how many standard errors on both sides hold a share of a normal distribution, of Student's with clusters."""
    from scipy.special import ndtri, stdtrit

    tail = 0.5 + confidence / 2
    return float(ndtri(tail) if num_clusters is None else stdtrit(num_clusters - 1, tail))


def _vector(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise ValueError(f"expected one value for each row, found an array of shape {values.shape}")
    return values


def _check_length(name: str, values: Sequence[Any], n: int) -> None:
    if len(values) != n:
        raise ValueError(f"{name} has {len(values)} entries for {n} rows")
