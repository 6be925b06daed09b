"""Scores as they are said at the end of a run: large numbers, few groups, what was not counted."""

import pytest
from eval_shop import EvalLLM, EvalShop

from jobs.evaluation.score_text import few_groups, metric_lines

TEXT = 'prompt: {template: "{{ q }}", chat: false}\neval: {task: generate, target: a, group: kind}\n'
CHOICES = 'prompt: {template: "{{ q }}", chat: false}\neval: {task: multiple_choice, choices: c, target: t}\n'


@pytest.fixture
def shop(tmp_path):
    return EvalShop(tmp_path)


def entry(value, stderr=None, low=None, high=None, n=9, **more):
    return {"value": value, "stderr": stderr, "low": low, "high": high, "n": n, **more}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (entry(0.25, 0.125, 0.1, 0.5), "0.2500  [0.1000, 0.5000]  ± 0.1250  (n = 9)"),
        (entry(999999.0), "999999.0000  (n = 9)"),
        (entry(1e6), "1e+06  (n = 9)"),
        (entry(123456789.0, 1e64, 12.5, 1e300), "1.23457e+08  [12.5000, 1e+300]  ± 1e+64  (n = 9)"),
        (entry(1e200, None, 3.0, None), "1e+200  (n = 9)"),  # the upper end is beyond double precision
        (entry(None), "too large a number"),
        (entry(None, n=0), "no rows"),
    ],
)
def test_a_metric_is_said_in_few_digits(values, said):
    assert metric_lines({"metrics": {"perplexity": values}}) == [f"perplexity  {said}"]


def test_few_groups_are_said_once_by_the_metric_with_the_fewest():
    known = {"low": 0.1}
    metrics = {
        "acc": {**known, "num_groups": 19},
        "f1": {**known, "num_groups": 3},
        "bleu": known,
        "one": {"low": None, "num_groups": 1},
    }
    assert few_groups(metrics) == "f1: 3 groups: the interval is rough below some 20"
    assert few_groups({"acc": metrics["acc"]}) == "acc: 19 groups: the interval is rough below some 20"
    assert few_groups({"acc": {**known, "num_groups": 20}, "bleu": known, "one": metrics["one"]}) is None


@pytest.mark.parametrize(("num", "is_said"), [(3, True), (19, True), (20, False)])
def test_a_run_with_few_groups_says_so_below_its_scores(shop, num, is_said):
    rows = [{"q": f"q{i}", "a": "4", "kind": f"k{i % num}"} for i in range(2 * num)]
    assert shop.run(TEXT, rows, EvalLLM({"q0": "4", "q1": "4"})) == 0
    assert shop.scores()["metrics"]["exact_match"]["num_groups"] == num
    assert "num_groups" not in shop.scores()["groups"]["k0"]["exact_match"]
    said = f"\nscore:   exact_match: {num} groups: the interval is rough below some 20\n"
    assert (said in shop.said) is is_said
    assert ("rough" in shop.said) is is_said


def test_rows_without_groups_have_no_number_of_them(shop):
    rows = [{"q": f"q{i}", "a": "4", "kind": f"k{i}"} for i in range(3)]  # each is a group of its own
    assert shop.run(TEXT, rows) == 0
    assert "num_groups" not in shop.scores()["metrics"]["exact_match"]
    assert "rough" not in shop.said


def test_cached_tokens_are_said_where_they_are_counted(shop):
    assert shop.run(TEXT, [{"q": "one", "a": "4", "kind": "k"}]) == 0
    assert "tokens:  4 prompt (2 cached), " in shop.said
    assert shop.run(CHOICES, [{"q": "one", "c": ["a", "bb"], "t": 0}]) == 0
    assert "tokens:  3 prompt, 0 completion, " in shop.said
    assert "cached)" not in shop.said
