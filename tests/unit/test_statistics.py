"""Numbers with their error bars, against values recorded from statsmodels and scipy.

Recorded with statsmodels 0.15.0, scipy 1.17.1, numpy 2.4.6:
    OLS_*: sm.OLS(x, ones).fit().bse; HC0_*: .fit(cov_type="HC0").bse
    CLUSTER_*: .fit(cov_type="cluster", cov_kwds={"groups": codes, "use_correction": False}).bse
    normal interval: sm.OLS(x, ones).fit(use_t=False).conf_int(); Wilson: proportion_confint(k, n, method="wilson")
    ratio: sm.WLS(-logprob / count, ones, weights=count).fit(cov_type="HC1").bse
    Student's quantiles: scipy.stats.t.ppf(0.975, degrees of freedom)
    bootstrap: scipy.stats.bootstrap(..., method="percentile", rng=np.random.default_rng(seed))
"""

import math

import numpy as np
import pytest

from jobs.evaluation import statistics
from jobs.evaluation.statistics import (
    bootstrap,
    bootstrap_replicas,
    estimate_mean,
    estimate_perplexity,
    linearized_ratio,
    wilson_interval,
)

REAL = [0.31, 0.74, 0.52, 0.11, 0.93, 0.47, 0.66, 0.28, 0.85, 0.05, 0.59, 0.38]
GROUPS = list("aaabbbbccdde")
RIGHT = [int(digit) for digit in "110100111010010110100101"]
OLS_REAL, HC0_REAL, CLUSTER_REAL = 0.08036336355591524, 0.07694206273891104, 0.037568481708757345
STUDENT = {1: 12.706204736174694, 3: 3.1824463052837078, 4: 2.7764451051977934, 11: 2.200985160091639}

LOGPROBS = [-41.2, -12.9, -77.3, -30.1, -55.8, -20.4, -64.0, -9.7]
COUNTS = [17, 6, 30, 9, 25, 8, 22, 5]


def test_mean_of_real_values():
    found = estimate_mean(REAL)
    assert (found.n, found.method) == (12, "normal")
    assert found.value == pytest.approx(0.49083333333333323, rel=1e-12)
    assert found.stderr == pytest.approx(OLS_REAL, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((0.33332404, 0.64834263), abs=1e-8)


def test_mean_of_right_and_wrong_has_wilsons_interval():
    found = estimate_mean(RIGHT)
    assert (found.value, found.n, found.method) == (13 / 24, 24, "wilson")
    assert found.stderr == pytest.approx(0.1038945721662295, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((0.3507486535891947, 0.7210866626878901), rel=1e-12)


@pytest.mark.parametrize(
    ("value", "low", "high"), [(0, 0.0, 0.3543304350666875), (1, 0.6456695649333125, 1.0)], ids=["none", "all"]
)
def test_wilsons_interval_is_no_point_where_all_values_are_equal(value, low, high):
    found = estimate_mean([value] * 7)
    assert found.stderr == 0
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert 0 <= found.low <= found.high <= 1


@pytest.mark.parametrize(
    ("value", "low", "high"), [(0, 0.0, 0.4610151324098284), (1, 0.5389848675901716, 1.0)], ids=["none", "all"]
)
def test_equal_values_in_clusters_have_wilsons_interval_of_the_clusters(value, low, high):
    # the end is t^2 / (7 + t^2) or 7 / (7 + t^2), with t = 2.4469118511449786 of 6 degrees of freedom
    found = estimate_mean([value] * 21, list("abcdefg") * 3)
    assert (found.stderr, found.n, found.method, found.num_clusters) == (0, 21, "clustered wilson", 7)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_right_and_wrong_in_clusters_has_wilsons_interval_of_as_many_rows_as_the_error_is_worth():
    # 13 of 24 in 12 pairs that agree are 12 rows, but for n - 1: SE^2 is 1/n^2 * (n/(n-1) + 1) * n * p * (1 - p)
    right = [1] * 14 + [0] * 10
    found = estimate_mean(right, [i // 2 for i in range(24)])
    share, num = 14 / 24, 24 / (24 / 23 + 1)
    assert found.stderr**2 == pytest.approx(share * (1 - share) / num, rel=1e-12)
    # Wilson's ends are where the share is t of their own standard errors away, here of 11 degrees of freedom
    for end in (found.low, found.high):
        assert (share - end) ** 2 == pytest.approx(STUDENT[11] ** 2 * end * (1 - end) / num, rel=1e-12)
    assert found.low < share < found.high
    assert (found.method, found.num_clusters) == ("clustered wilson", 12)
    # 7 of 8, the wrong one in a group of its own: m + t SE would be beyond 1
    assert estimate_mean([0] + [1] * 7, list("abbbcccc")).high < 1


def test_wilsons_interval_of_another_confidence():
    assert wilson_interval(13 / 24, 24, 0.9) == pytest.approx((0.3787964927645191, 0.6960943254447354), rel=1e-12)


def test_clustered_standard_error():
    found = estimate_mean(REAL, GROUPS)
    # statsmodels' sandwich divides squares by n^2; the formula has those of single rows over n (n - 1)
    expected = math.sqrt(CLUSTER_REAL**2 + OLS_REAL**2 - HC0_REAL**2)
    assert found.stderr == pytest.approx(expected, rel=1e-12)
    assert (found.method, found.num_clusters) == ("clustered", 5)
    assert found.high - found.value == pytest.approx(STUDENT[4] * expected, rel=1e-12)
    assert found.value - found.low == pytest.approx(STUDENT[4] * expected, rel=1e-12)
    assert found.value == estimate_mean(REAL).value


def test_clustered_standard_error_by_hand():
    # deviations are -1, -1, 1, 1: SE^2 = 4/3/4 = 1/3, and the pairs within clusters add (2 + 2) / 16
    found = estimate_mean([0, 0, 2, 2], ["x", "x", "y", "y"])
    assert found.stderr == pytest.approx(math.sqrt(1 / 3 + 1 / 4), rel=1e-14)
    # SciPy's quantile of one degree of freedom has ten digits in versions before 1.16
    assert found.high == pytest.approx(1 + STUDENT[1] * math.sqrt(7 / 12), rel=1e-9)


def test_three_groups_are_covered_nearly_as_often_as_is_said():
    # normal rows in normal groups of true mean 0; with the normal quantile the interval holds it 3 times in 4
    generator = np.random.default_rng(5)
    values = generator.normal(size=(500, 3, 1)) + generator.normal(size=(500, 3, 10))
    found = [estimate_mean(each.ravel(), np.repeat(np.arange(3), 10)) for each in values]
    assert 0.9 < np.mean([one.low <= 0 <= one.high for one in found]) < 0.97


def test_clusters_of_one_row_are_no_clusters():
    assert estimate_mean(RIGHT, list(range(24))) == estimate_mean(RIGHT)
    assert estimate_mean(REAL, np.arange(12)) == estimate_mean(REAL)


def test_names_of_clusters_do_not_matter():
    numbers = np.array([7, 7, 7, -1, -1, -1, -1, 3, 3, 0, 0, 5])
    assert estimate_mean(REAL, numbers) == estimate_mean(REAL, GROUPS)


def test_one_cluster_tells_nothing_of_the_error():
    found = estimate_mean(REAL, ["same"] * 12)
    assert (found.method, found.num_clusters) == ("none", 1)
    assert math.isnan(found.stderr) and math.isnan(found.low) and math.isnan(found.high)


def test_one_row_has_no_standard_error():
    found = estimate_mean([0.5])
    assert (found.value, found.n, found.method) == (0.5, 1, "none")
    assert math.isnan(found.stderr)
    assert estimate_mean([1]).method == "wilson"
    assert estimate_mean([1], ["g"]).method == "none"


def test_no_rows():
    found = estimate_mean([])
    assert (found.n, found.method) == (0, "none")
    assert math.isnan(found.value)


@pytest.mark.parametrize("clusters", [["a"], ["a"] * 13])
def test_clusters_must_be_one_for_each_row(clusters):
    with pytest.raises(ValueError, match=r"clusters has .* entries for 12 rows"):
        estimate_mean(REAL, clusters)


def test_perplexity_by_the_delta_method():
    found = estimate_perplexity(LOGPROBS, COUNTS)
    assert found.value == pytest.approx(12.838635413326795, rel=1e-12)
    stderr_of_nats = 0.1230176
    assert found.stderr == pytest.approx(12.838635413326795 * stderr_of_nats, rel=1e-6)
    z = 1.959963984540054 * stderr_of_nats
    assert (found.low, found.high) == pytest.approx((math.exp(2.55245902 - z), math.exp(2.55245902 + z)), rel=1e-6)
    assert (found.n, found.method) == (8, "delta")


def test_perplexity_of_texts_in_clusters():
    found = estimate_perplexity(LOGPROBS, COUNTS, [0, 0, 1, 1, 2, 2, 3, 3])
    # WLS with cov_type="cluster" without correction, and HC1 - HC0 as in the clustered mean
    stderr_of_nats = math.sqrt(0.10696312**2 + 0.1230176**2 - 0.11507242**2)
    assert found.stderr == pytest.approx(12.838635413326795 * stderr_of_nats, rel=1e-6)
    nats = [2.55245902 - STUDENT[3] * stderr_of_nats, 2.55245902 + STUDENT[3] * stderr_of_nats]
    assert (found.low, found.high) == pytest.approx((math.exp(nats[0]), math.exp(nats[1])), rel=1e-6)
    assert (found.method, found.num_clusters) == ("delta", 4)


def test_perplexity_of_one_text_and_of_none():
    found = estimate_perplexity([-8 * math.log(2)], [4])
    assert (found.value, found.n, found.method) == (pytest.approx(4.0), 1, "none")
    assert math.isnan(found.stderr)
    assert estimate_perplexity([], []).n == 0


def test_linearized_values_of_equal_weights_are_the_ratios():
    ratio, values = linearized_ratio([1.0, 2.0, 6.0], [2.0, 2.0, 2.0])
    assert ratio == 1.5
    assert values.tolist() == [0.5, 1.0, 3.0]


def test_bootstrap_of_a_mean():
    found = bootstrap(np.array(REAL), np.mean)
    assert found.value == pytest.approx(0.49083333333333323, rel=1e-12)
    assert found.stderr == pytest.approx(0.0782511584537565, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((0.34325, 0.6466875), rel=1e-9)
    assert (found.n, found.method) == (12, "bootstrap")


def test_bootstrap_of_a_median_one_resample_at_a_time():
    found = bootstrap(np.array(REAL), np.median, seed=7, num=400)
    assert found.stderr == pytest.approx(0.10391522233813465, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((0.295, 0.685375), rel=1e-9)


def test_bootstrap_of_a_perplexity():
    rows = np.stack([LOGPROBS, COUNTS], axis=1)
    found = bootstrap(rows, lambda drawn: math.exp(-drawn[:, 0].sum() / drawn[:, 1].sum()), seed=3)
    assert found.value == pytest.approx(12.838635413326795, rel=1e-12)
    assert found.stderr == pytest.approx(1.5859104696774202, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((10.141385309559581, 16.388635905095985), rel=1e-9)


@pytest.mark.parametrize("max_draws", [1, 12, 100, 1 << 22])
def test_bootstrap_does_not_depend_on_how_much_is_held_at_once(monkeypatch, max_draws):
    monkeypatch.setattr(statistics, "_MAX_DRAWS", max_draws)
    found = bootstrap_replicas(np.array(REAL), lambda rows: rows.mean(axis=1), 0, 1000, vectorized=True)
    assert found.std(ddof=1) == pytest.approx(0.0782511584537565, rel=1e-9)


def test_bootstrap_holds_a_bounded_number_of_draws():
    most = 0

    def statistic(rows):
        nonlocal most
        most = max(most, rows.size)
        return rows.mean(axis=1)

    bootstrap_replicas(np.zeros(100_000), statistic, 0, 60, vectorized=True)
    assert 100_000 <= most <= 1 << 22


def test_bootstrap_of_what_is_not_finite_gives_no_interval():
    found = bootstrap(np.array([1.0, np.inf]), np.max, num=50)
    assert (found.value, found.method) == (math.inf, "none")
    assert math.isnan(found.stderr)


def test_bootstrap_of_one_row_and_of_none():
    assert (bootstrap(np.array([3.0]), np.mean).value, bootstrap(np.array([3.0]), np.mean).method) == (3.0, "none")
    assert bootstrap(np.zeros(0), np.mean).n == 0
