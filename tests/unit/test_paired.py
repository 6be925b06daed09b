"""Tests on the scores of the same rows in two runs, against recorded values.

Recorded with statsmodels 0.15.0 and scipy 1.17.1:
    paired t: scipy.stats.ttest_rel(b, a) and its confidence_interval
    McNemar: statsmodels.stats.contingency_tables.mcnemar(table, exact=...), with its continuity correction
    bootstrap: how many of scipy.stats.bootstrap(...).bootstrap_distribution of the differences less their mean, 2,000
        resamples with seed 0, are as far from 0 as the mean; with clusters, the ratio of their sums and sizes, paired
    standard errors: sm.OLS(b - a, ones).fit().bse, "HC0", and "cluster" with use_correction=False
"""

import math

import numpy as np
import pytest
import scipy.stats

from jobs.evaluation.paired import bootstrap_p, mcnemar, paired_difference

REAL = [0.31, 0.74, 0.52, 0.11, 0.93, 0.47, 0.66, 0.28, 0.85, 0.05, 0.59, 0.38]
OTHER = [0.42, 0.71, 0.66, 0.25, 0.9, 0.58, 0.61, 0.49, 0.97, 0.02, 0.77, 0.33]
GROUPS = list("aaabbbbccdde")
RIGHT_A = [int(digit) for digit in "110100111010010110100101"]
RIGHT_B = [int(digit) for digit in "111110111110011010111101"]


def test_paired_t():
    found = paired_difference(REAL, OTHER)
    assert (found.n, found.method, found.p_mcnemar) == (12, "paired t", None)
    assert found.value == pytest.approx(0.06833333333333332, rel=1e-12)
    assert found.stderr == pytest.approx(0.028333333333333342, rel=1e-12)
    assert found.p_value == found.p_t == pytest.approx(0.03450647409603225, rel=1e-10)
    assert (found.low, found.high) == pytest.approx((0.005972087130736874, 0.13069457953592975), rel=1e-10)
    assert (found.num_higher, found.num_lower, found.num_equal) == (7, 5, 0)


def test_the_confidence_of_the_interval():
    found = paired_difference(REAL, OTHER, confidence=0.9)
    assert (found.low, found.high) == pytest.approx((0.017449930136718722, 0.11921673652994788), rel=1e-10)


def test_clustered_t():
    found = paired_difference(REAL, OTHER, GROUPS)
    stderr = math.sqrt(0.020826850843307612**2 + 0.028333333333333342**2 - 0.02712710138642959**2)
    assert found.stderr == pytest.approx(stderr, rel=1e-12)
    assert found.method == "clustered t"
    # as many degrees of freedom as clusters, less one
    assert found.p_value == pytest.approx(2 * scipy.stats.t.sf(0.06833333333333332 / stderr, 4), rel=1e-10)
    half = scipy.stats.t.ppf(0.975, 4) * stderr
    assert found.high == pytest.approx(0.06833333333333332 + half, rel=1e-10)


def test_right_and_wrong_are_tested_by_mcnemar():
    found = paired_difference(RIGHT_A, RIGHT_B)
    assert (found.method, found.value) == ("McNemar", pytest.approx(5 / 24))
    assert found.p_value == found.p_mcnemar == pytest.approx(0.125, rel=1e-12)
    assert found.p_t == pytest.approx(0.056843755787830394, rel=1e-10)
    assert (found.num_higher, found.num_lower, found.num_equal) == (6, 1, 17)


def test_rows_in_clusters_are_not_tested_by_mcnemar():
    found = paired_difference(RIGHT_A, RIGHT_B, [i // 4 for i in range(24)])
    assert (found.method, found.p_mcnemar) == ("clustered t", None)


def pairs(gained, lost, same=5):
    return [0] * gained + [1] * lost + [1] * same, [1] * gained + [0] * lost + [1] * same


@pytest.mark.parametrize(
    ("gained", "lost", "p_exact", "statistic", "p_chi_square"),
    [
        (6, 1, 0.125, 2.2857142857142856, 0.13057001811573693),
        (1, 6, 0.125, 2.2857142857142856, 0.13057001811573693),
        (59, 121, 4.4344492637551645e-06, 20.67222222222222, 5.450094825427117e-06),
        (3, 3, 1.0, 0.0, 1.0),
        (0, 0, 1.0, 0.0, 1.0),
    ],
)
def test_mcnemar(gained, lost, p_exact, statistic, p_chi_square):
    found = mcnemar(*pairs(gained, lost))
    assert (found.num_gained, found.num_lost) == (gained, lost)
    assert (found.p_exact, found.statistic, found.p_chi_square) == pytest.approx(
        (p_exact, statistic, p_chi_square), rel=1e-9
    )  # fmt: skip


def test_mcnemar_refuses_other_values():
    with pytest.raises(ValueError, match="values of 0 and 1"):
        mcnemar([0, 0.5], [1, 1])


def test_bootstrap_p():
    differences = np.array(OTHER) - np.array(REAL)
    assert bootstrap_p(differences) == (1 + 19) / 2001
    assert bootstrap_p(differences, np.unique(GROUPS, return_inverse=True)[1]) == (1 + 15) / 2001


def test_bootstrap_agrees_with_the_t_test_on_many_rows():
    differences = np.random.default_rng(5).normal(0, 1, 1600)
    differences += 0.03 - differences.mean()
    p_t = scipy.stats.ttest_1samp(differences, 0).pvalue
    assert 0.2 < p_t < 0.3
    assert bootstrap_p(differences) == pytest.approx(p_t, abs=0.03)


def test_bootstrap_counts_by_hand():
    # moved to mean 0 these are -1 and 1, whose resamples have the means -1, 0, 0, 1: half are at least 1 away
    assert bootstrap_p(np.array([0.0, 2.0])) == pytest.approx(0.5, abs=0.04)
    assert math.isnan(bootstrap_p(np.array([3.0, 3.0, 3.0])))  # all resamples are alike
    assert bootstrap_p(np.zeros(3)) == 1.0


def test_bootstrap_draws_whole_clusters():
    # two clusters, moved to mean 0, have the means -1 and 1, as the two rows above
    found = bootstrap_p(np.array([0.0, 0.0, 2.0, 2.0]), np.array([0, 0, 1, 1]))
    assert found == pytest.approx(0.5, abs=0.04)
    # as four rows they would be at least 1 away only in the two extreme ones of sixteen
    assert bootstrap_p(np.array([0.0, 0.0, 2.0, 2.0])) == pytest.approx(1 / 8, abs=0.03)


def test_equal_scores_differ_by_nothing():
    found = paired_difference(REAL, REAL)
    assert (found.value, found.stderr, found.low, found.high) == (0, 0, 0, 0)
    assert (found.p_t, found.p_bootstrap, found.num_equal) == (1, 1, 12)


@pytest.mark.parametrize(
    ("a", "clusters", "p"),
    [([0.7, 0.8], None, 0.5), ([0.25] * 8, None, 2 / 256), ([0.25] * 8, list("aabbccdd"), 2 / 16)],
    ids=["two", "eight", "four clusters"],
)
def test_where_all_rows_differ_by_the_same_chance_has_their_sign_alone(a, clusters, p):
    found = paired_difference(a, [one + 0.1 for one in a], clusters)
    assert (found.method, found.p_value) == ("sign", p)
    assert found.value == pytest.approx(0.1)
    assert math.isnan(found.p_t) and math.isnan(found.p_bootstrap)


def test_one_pair_tells_nothing_of_chance():
    found = paired_difference([0.2], [0.3])
    assert (found.n, found.method) == (1, "none")
    assert math.isnan(found.stderr) and math.isnan(found.p_value) and math.isnan(found.p_bootstrap)


def test_without_pairs_or_of_different_lengths():
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="one length"):
        paired_difference([1, 0], [1])
