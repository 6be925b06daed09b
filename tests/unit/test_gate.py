"""Conditions on scores: their forms, when they hold, what they say."""

import math

import pytest
from finished_evals import row, write_evaluation, write_files
from scipy.stats import norm, ttest_rel

from jobs.evaluation.gate import Gate
from nanovllm import ConfigError


def scores(**metrics):
    """Give scores of 90 right rows of 300 and a perplexity, or others."""
    known = {
        "exact_match": {
            "value": 0.3,
            "stderr": 0.0265,
            "low": 0.2509,
            "high": 0.3542,
            "n": 300,
            "method": "wilson",
            "higher_is_better": True,
        },
        "perplexity": {
            "value": 12.5,
            "stderr": 0.5,
            "low": 11.5,
            "high": 13.5,
            "n": 9,
            "method": "delta",
            "higher_is_better": False,
        },
        "empty": {"value": None, "stderr": None, "low": None, "high": None, "n": 0, "method": "none"},
        "single": {"value": 0.7, "stderr": None, "low": None, "high": None, "n": 1, "method": "none"},
    }
    return {"task": "generate", "metrics": {**known, **metrics}}


def judge(mapping, run=None, values=None, folders=()):
    place = [mapping, "eval.gate", *([list(folders)] if folders else [])]
    return Gate.from_settings(*place).check(values or scores(), run)


def test_another_confidence_of_a_clustered_share():
    # 13 of 24 with the error of 12 independent rows: roots of (13/24 - x)^2 = t^2 x (1 - x) / 12, t of 11 and 0.95
    share = {"value": 13 / 24, "stderr": 0.14383, "low": 0.265, "high": 0.796, "n": 24, "method": "clustered wilson"}
    values = scores(exact_match={**share, "num_groups": 12, "higher_is_better": True})
    (verdict,) = judge({"exact_match": {"bound": ">= 0.3", "confidence": 0.9}}, values=values)
    assert "between 0.3034 and 0.7623" in verdict.sentence


def test_another_confidence_of_a_clustered_mean_is_students():
    # t of 2 degrees of freedom and 0.95 is 2.9200
    mean = {"value": 2.0, "stderr": 0.1, "low": 1.5697, "high": 2.4303, "n": 30, "method": "clustered"}
    condition = {"f1": {"bound": ">= 1.7", "confidence": 0.9}}
    (verdict,) = judge(condition, values=scores(f1={**mean, "num_groups": 3}))
    assert "between 1.7080 and 2.2920" in verdict.sentence
    (verdict,) = judge(condition, values=scores(f1=mean))  # as earlier versions wrote it
    assert (verdict.holds, "with no known error" in verdict.sentence) == (False, True)


@pytest.mark.parametrize(("confidence", "holds"), [(0.9, True), (0.95, True), (0.99, False)])
def test_groups_that_are_all_right_are_no_certainty(confidence, holds):
    all_right = {
        "value": 1.0,
        "stderr": 0.0,
        "low": 0.5389848675901716,
        "high": 1.0,
        "n": 21,
        "method": "clustered wilson",
        "num_groups": 7,
    }
    values = scores(exact_match={**all_right, "higher_is_better": True})
    (verdict,) = judge({"exact_match": {"bound": ">= 0.5", "confidence": confidence}}, values=values)
    assert verdict.holds is holds
    assert not judge({"exact_match": {"bound": ">= 0.7", "confidence": confidence}}, values=values)[0].holds


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (">= 0.30", True),
        (">=0.3", True),
        ("  >= .3  ", True),
        (">= 0.3001", False),
        ("> 0.30", False),
        ("> 0.299", True),
        ("<= 0.3", True),
        ("<= 2.9e-1", False),
        ("< 0.3", False),
        ("< +1", True),
        ("> -1.", True),
    ],
)
def test_a_metric_against_a_number(condition, holds):
    (verdict,) = judge({"exact_match": condition})
    assert (verdict.metric, verdict.holds) == ("exact_match", holds)


def test_the_last_binary_digit_does_not_decide():
    summed = {"value": 0.1 + 0.2 + 0.4, "higher_is_better": True}  # 0.7000000000000001
    assert judge({"f1": "<= 0.7"}, values=scores(f1=summed))[0].holds
    below = {"value": 0.3 - 1e-9, "higher_is_better": True}
    assert not judge({"f1": ">= 0.3"}, values=scores(f1=below))[0].holds


def test_sentences():
    verdicts = judge({"exact_match": ">= 0.35", "perplexity": "<= 15", "empty": "> 0"})
    assert [(verdict.holds, verdict.sentence) for verdict in verdicts] == [
        (False, "exact_match is 0.3000: >= 0.35 does not hold"),
        (True, "perplexity is 12.5000: <= 15 holds"),
        (False, "empty has no value, and > 0 is wanted"),
    ]


def test_a_sentence_shows_on_which_side_a_close_value_lies():
    (verdict,) = judge({"f1": ">= 0.3"}, values=scores(f1={"value": 0.29996}))
    assert verdict.sentence == "f1 is 0.29996: >= 0.3 does not hold"


@pytest.mark.parametrize(
    ("metric", "bound", "holds"),
    [
        ("exact_match", ">= 0.25", True),
        ("exact_match", ">= 0.26", False),
        ("perplexity", "<= 13.5", True),
        ("perplexity", "<= 13", False),
    ],
)
def test_with_confidence_the_worse_end_of_the_interval_decides(metric, bound, holds):
    assert judge({metric: {"bound": bound, "confidence": 0.95}})[0].holds is holds


def test_intervals_of_another_confidence():
    (verdict,) = judge({"exact_match": {"bound": ">= 0.2", "confidence": 0.99}})
    # recorded: statsmodels 0.15.0, proportion_confint(90, 300, 0.01, method="wilson")
    assert verdict.sentence == ("exact_match is 0.3000, between 0.2368 and 0.3719: >= 0.2 with 99 % confidence holds")
    (verdict,) = judge({"perplexity": {"bound": "<= 13.3", "confidence": 0.9}})
    assert f"and {12.5 * math.exp(norm.ppf(0.95) * 0.5 / 12.5):.4f}: " in verdict.sentence  # e to that of the logarithm
    assert not verdict.holds


def test_confidence_in_a_score_without_a_known_error_is_none():
    (verdict,) = judge({"single": {"bound": "> 0", "confidence": 0.95}})
    assert (verdict.holds, verdict.sentence) == (
        False,
        "single is 0.7000, with no known error: > 0 with 95 % confidence does not hold",
    )


@pytest.mark.parametrize("value", [0.3, "0.3", "== 0.3", ">= a", ">= nan", "", ">= 0.3 %", None, [">= 0.3"], {}])
def test_what_is_no_condition(value):
    with pytest.raises(ConfigError, match=r'^eval\.gate\.exact_match: .* is no condition: .* as in ">= 0\.30"$'):
        Gate.from_settings({"exact_match": value}, "eval.gate")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (None, "eval.gate must be metrics with conditions"),
        ({}, "eval.gate must be metrics with conditions"),
        ([">= 1"], "eval.gate must be metrics with conditions"),
        (
            {"f1": {"bound": "> 0", "confidence": 95}},
            "eval.gate.f1.confidence is 95: expected a number between 0 and 1",
        ),
        ({"f1": {"bound": "> 0", "confidence": True}}, "eval.gate.f1.confidence is True"),
        ({"f1": {"bonud": "> 0"}}, "eval.gate.f1: unknown key 'bonud': did you mean 'bound'?"),
        ({"no_worse_than": "runs/a"}, "eval.gate.no_worse_than: expected a run's directory and a metric"),
        ({"no_worse_than": {"run": "runs/a"}}, "eval.gate.no_worse_than: expected a run's directory and a metric"),
        ({"no_worse_than": []}, "eval.gate.no_worse_than is an empty list"),
    ],
)
def test_what_is_no_gate(mapping, message):
    with pytest.raises(ConfigError) as found:
        Gate.from_settings(mapping, "eval.gate")
    assert str(found.value).startswith(message)


def test_a_metric_that_the_scores_lack():
    with pytest.raises(ConfigError) as found:
        judge({"f1": "> 0"})
    assert str(found.value) == (
        "eval.gate.f1: there is no metric 'f1'; the scores have exact_match, perplexity, empty, single"
    )


def make(folder, values, metric="exact_match", **more):
    """Write an evaluation, and give its directory and its scores."""
    import json

    write_evaluation(folder, values, metric, **more)
    return folder, json.loads((folder / "scores.json").read_text())


def no_worse(run, metric="exact_match", **more):
    return {"no_worse_than": {"run": str(run), "metric": metric, **more}}


@pytest.mark.parametrize(
    ("margin", "holds"), [({}, False), ({"margin": 0.09}, False), ({"margin": 0.1}, True), ({"margin": 1}, True)]
)
def test_no_worse_than_an_earlier_run(tmp_path, margin, holds):
    base, _ = make(tmp_path / "base", [1, 1, 1, 1, 1, 1, 1, 0, 0, 0])
    run, values = make(tmp_path / "run", [1, 1, 1, 1, 1, 1, 0, 0, 0, 0])
    # 0.6 - 0.7 is -0.09999999999999998 or -0.1 as it is summed: neither may decide
    (verdict,) = judge(no_worse(base, **margin), run, values)
    assert (verdict.metric, verdict.holds) == ("exact_match", holds)


def test_no_worse_than_says_both_numbers(tmp_path):
    base, _ = make(tmp_path / "base", [1, 1, 1, 0])
    run, values = make(tmp_path / "run", [1, 1, 0, 0])
    assert judge(no_worse(base, margin=0.1), run, values)[0].sentence == (
        f"exact_match is 0.5000, 0.2500 worse than 0.7500 of {base} over 4 common rows: at most 0.1 worse does not hold"
    )
    assert judge(no_worse(run), base, make(tmp_path / "again", [1, 1, 1, 0])[1])[0].sentence == (
        f"exact_match is 0.7500, 0.2500 better than 0.5000 of {run} over 4 common rows: no worse holds"
    )
    same, same_values = make(tmp_path / "same", [0, 1, 1, 1])
    assert judge(no_worse(base), same, same_values)[0].sentence == (
        f"exact_match is 0.7500, the same as 0.7500 of {base} over 4 common rows: no worse holds"
    )


def test_where_less_is_better_more_is_worse(tmp_path):
    base, _ = make(tmp_path / "base", [2.0, 4.0], "distance", higher_is_better=False)
    run, values = make(tmp_path / "run", [2.5, 4.5], "distance", higher_is_better=False)
    (verdict,) = judge(no_worse(base, "distance", margin=0.4), run, values)
    assert not verdict.holds
    assert "distance is 3.5000, 0.5000 worse than 3.0000 of" in verdict.sentence
    assert judge(no_worse(base, "distance", margin=0.5), run, values)[0].holds
    assert judge(no_worse(run, "distance"), base, make(tmp_path / "b", [2.0, 4.0], "distance")[1])[0].holds is False


def test_with_confidence_the_interval_of_the_difference_decides(tmp_path):
    a, b = [0.5, 0.6, 0.7, 0.8, 0.4, 0.3], [0.55, 0.58, 0.75, 0.78, 0.44, 0.33]
    base, _ = make(tmp_path / "base", a, "f1")
    run, values = make(tmp_path / "run", b, "f1")
    least = ttest_rel(b, a).confidence_interval(0.95).low  # negative, though the mean difference is 0.0217
    assert -0.02 < least < 0
    assert judge(no_worse(base, "f1"), run, values)[0].holds
    (verdict,) = judge(no_worse(base, "f1", confidence=0.95), run, values)
    assert not verdict.holds
    assert f", {-least:.4f} worse than it at worst: no worse with 95 % confidence does not hold" in verdict.sentence
    assert judge(no_worse(base, "f1", confidence=0.95, margin=0.02), run, values)[0].holds


def test_confidence_needs_more_than_one_row(tmp_path):
    base, _ = make(tmp_path / "base", [0.5], "f1")
    run, values = make(tmp_path / "run", [0.9], "f1")
    (verdict,) = judge(no_worse(base, "f1", confidence=0.95, margin=0.5), run, values)
    assert not verdict.holds
    assert "with no known error" in verdict.sentence


def test_only_common_rows_count_and_the_sentence_says_so(tmp_path):
    base, _ = make(tmp_path / "base", [1, 1, 0, 0])
    run, values = make(tmp_path / "run", [1, 1])
    (verdict,) = judge(no_worse(base), run, values)
    assert verdict.holds
    assert verdict.sentence.endswith(
        f"over 2 common rows: no worse holds; rows are missing: 2 are only in {base}, 0 only in {run}; "
        "the rows of both are compared"
    )


def test_a_run_that_cannot_be_paired_does_not_hold(tmp_path):
    base, _ = make(tmp_path / "base", [1, 1])
    run = write_files(tmp_path / "run", [row(7, 1)], {"exact_match": {"value": 1.0, "higher_is_better": True}})
    (verdict,) = judge(no_worse(base), run, {"task": "generate", "metrics": {"exact_match": {"value": 1.0}}})
    assert not verdict.holds
    assert verdict.sentence.startswith("exact_match cannot be compared: ")
    assert "no row id in common" in verdict.sentence


def test_a_run_is_no_worse_than_itself_only_by_mistake(tmp_path):
    base, values = make(tmp_path / "base", [1, 1])
    (verdict,) = judge(no_worse(base), base, values)
    assert (verdict.holds, "is this run itself: name an earlier one" in verdict.sentence) == (False, True)


def test_the_run_at_work_needs_no_scores_on_disk(tmp_path):
    base, _ = make(tmp_path / "base", [1, 0])
    run, values = make(tmp_path / "run", [1, 1])
    (run / "scores.json").unlink()
    (run / "manifest.json").write_text('{"kind": "nanovllm-run", "status": "running"}')
    assert judge(no_worse(base), run, values)[0].holds


def test_several_earlier_runs(tmp_path):
    one, _ = make(tmp_path / "one", [1, 1])
    two, _ = make(tmp_path / "two", [0, 0])
    run, values = make(tmp_path / "run", [1, 0])
    gate = {"no_worse_than": [no_worse(one)["no_worse_than"], no_worse(two)["no_worse_than"]], "exact_match": "> 0"}
    assert [verdict.holds for verdict in judge(gate, run, values)] == [False, True, True]


def test_an_earlier_run_is_looked_for_before_anything_is_done(tmp_path, monkeypatch):
    make(tmp_path / "jobs" / "base", [1, 0])
    run, values = make(tmp_path / "run", [1, 1])
    folders = [tmp_path, tmp_path / "jobs"]
    assert judge(no_worse("base"), run, values, folders)[0].holds
    monkeypatch.setenv("WHERE", str(tmp_path / "jobs"))
    assert judge(no_worse("${WHERE}/base"), run, values)[0].holds
    with pytest.raises(
        ConfigError, match=r"^eval\.gate\.no_worse_than\.run: there is no directory 'bsae' \(looked in "
    ):
        Gate.from_settings(no_worse("bsae"), "eval.gate", folders)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"metric": "f1"}, "has no metric 'f1': known are exact_match"),
        ({"margin": -0.1}, r"eval\.gate\.no_worse_than\.margin is -0\.1: expected how much worse is allowed"),
        ({"margin": "0.1"}, r"no_worse_than\.margin is '0\.1'"),
        ({"confidence": 1}, r"no_worse_than\.confidence is 1: expected a number between 0 and 1"),
        ({"margn": 0.1}, r"eval\.gate\.no_worse_than: unknown key 'margn': did you mean 'margin'\?"),
    ],
)
def test_what_no_worse_than_refuses(tmp_path, more, message):
    base, _ = make(tmp_path / "base", [1, 0])
    with pytest.raises(ConfigError, match=message):
        Gate.from_settings({"no_worse_than": {"run": str(base), "metric": "exact_match", **more}}, "eval.gate")


def test_an_earlier_run_that_is_not_finished(tmp_path):
    base, _ = make(tmp_path / "base", [1, 0])
    (base / "scores.json").unlink()
    with pytest.raises(ConfigError, match="is a run without scores"):
        Gate.from_settings(no_worse(base), "eval.gate")
