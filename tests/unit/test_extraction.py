"""Answers out of texts: thinking cut off, steps in order, votes over samples."""

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

from jobs.evaluation.extraction import Pipeline, maj_at_k, majority_vote, pass_at_k, strip_thinking
from jobs.evaluation.extraction_steps import STEPS
from jobs.evaluation.scorers import patterns
from nanovllm import ConfigError, RequestError

PAGE = (Path(__file__).parents[2] / "docs" / "scorers.md").read_text("utf-8")


def extract(text, *steps):
    return Pipeline.from_settings(list(steps), "eval.extract")(text)


@pytest.mark.parametrize(
    ("text", "step", "expected"),
    [
        ("a1 b2", {"regex": "[0-9]"}, "1"),
        ("a1 b2", {"regex": "[0-9]", "which": "last"}, "2"),
        ("a1 b2", {"regex": "([a-z])([0-9])", "group": 2}, "1"),
        ("a1 b2", {"regex": "([a-z])([0-9])", "group": 0}, "a1"),
        ("a1 b2", {"regex": "(?P<letter>[a-z])[0-9]", "group": "letter", "which": "last"}, "b"),
        ("is 42", {"regex": r"(-?[$0-9.,]{3,})|(-?[0-9]+)"}, "42"),  # the first group that matched, as in lm-eval
        ("ac", {"regex": "a(b)?c", "group": 1}, None),
        ("ac", {"regex": "a(b)?c"}, ""),
        ("none", {"regex": "[0-9]"}, None),
        ("  a ", "strip", "a"),
        ("**a**.", {"strip": "*."}, "a"),
        ("YES", "lower", "yes"),
        ("$1,000", {"remove": "$,"}, "1000"),
        ("\n \n a \nb", "first_line", "a"),
        ("a\nb \n\n", "last_line", "b"),
        (" \n", "first_line", None),
        (" \n", "last_line", None),
        ("x: 1, x: 2", {"after": "x: "}, "1, x: 2"),
        ("x: 1, x: 2", {"after": "x: ", "which": "last"}, "2"),
        ("nothing", {"after": "x: "}, None),
        ("1;2;3", {"before": ";"}, "1"),
        ("1;2;3", {"before": ";", "which": "last"}, "1;2"),
        ("123", {"before": ";"}, "123"),
        ("3 boxes for $1,250.50", "number", "1250.5"),
        ("3 boxes for $1,250.50", {"number": "first"}, "3"),
        ("-0.50 or 1/3", {"number": "first"}, "-0.5"),
        ("1/3", "number", "1/3"),
        ("none", "number", None),
        ("The answer is (c)", "choice_letter", "C"),
        ("The answer is (E)", {"choice_letter": "ABCD"}, None),
        (r"\boxed{1} so \boxed{\frac{1}{2}} ok", "boxed", r"\frac{1}{2}"),
        (r"\boxed{\frac{1}{2}", "boxed", None),
        ("none", "boxed", None),
        ("x\n```py\na = 1\n\nb\n```\ny", "code_block", "a = 1\n\nb"),
        ("```\ncut off", "code_block", "cut off"),
        ("no code", "code_block", None),
        ('is {"b": 1, "a": {"d": 1, "c": "é"}}', "json", '{"a": {"c": "é", "d": 1}, "b": 1}'),
        ("is [2, 1] or {}", "json", "[2, 1]"),
        ('is {"b": 1, "a": "x"}', {"json": "a"}, "x"),
        ('is {"b": 1, "a": "x"}', {"json": "b"}, "1"),
        ('is {"b": 1}', {"json": "a"}, None),
        ("is [1]", {"json": "a"}, None),
    ],
)
def test_steps(text, step, expected):
    assert extract(text, step) == expected


def test_steps_run_in_order_until_one_finds_nothing():
    assert extract("Answer: \n A: $1,000.", {"after": "A:"}, "strip", {"strip": "."}, {"remove": "$,"}) == "1000"
    assert extract("Answer", {"after": "A:"}, "strip", "lower") is None


def test_no_steps_give_the_text_back():
    assert Pipeline.from_settings(None, "x")(" a ") == Pipeline.from_settings([], "x")(" a ") == " a "


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("strip", "eval.extract is 'strip', expected a list of steps"),
        (["stripp"], "eval.extract, step 1: there is no step 'stripp': did you mean 'strip'?"),
        (["strip", {"regexp": "a"}], "step 2: there is no step 'regexp': did you mean 'regex'?"),
        (["regex"], "step 1: regex needs a value, a regular expression"),
        ([{"regex": "("}], "regex is '(': not a regular expression: missing )"),
        ([{"regex": "a{99999999999}"}], "not a regular expression"),
        ([{"regex": "(" * 3000 + ")" * 3000}], "the pattern has 6,000 characters, at most 5,000 are allowed"),
        ([{"regex": "a", "wich": "last"}], "step 1: regex has no option 'wich': did you mean 'which'?"),
        ([{"regex": "a", "which": "second"}], "regex.which is 'second', expected one of first, last"),
        ([{"regex": "(a)", "group": 2}], "regex.group is 2, but the pattern has 1 groups"),
        ([{"regex": "(?P<day>a)", "group": "dya"}], "which the pattern does not name: did you mean 'day'?"),
        ([{"regex": "(a)", "group": "day"}], "it names none, as (?P<name>…) would"),
        ([{"regex": "a", "group": True}], "regex.group is True, expected a group's number or name"),
        ([{"lower": True}], "step 1: lower takes no value: write lower alone"),
        ([{"strip": None, "lower": None}], "step 1 names the steps strip and lower: write each as an item"),
        ([{"remove": ""}], "remove is '', expected a text"),
        ([{"number": "middle"}], "number is 'middle', expected one of first, last"),
        ([3], "step 1 is 3, expected a step's name"),
        ([{}], "step 1 is {}, expected a step's name"),
    ],
)
def test_wrong_steps_are_named(steps, message):
    with pytest.raises(ConfigError) as caught:
        Pipeline.from_settings(steps, "eval.extract")
    assert message in str(caught.value)


def test_a_pattern_that_explodes_is_an_error_of_its_row(monkeypatch):
    monkeypatch.setattr(patterns, "MAX_SECONDS", 0.05)
    for which in ("first", "last"):
        with pytest.raises(RequestError) as caught:
            extract("a" * 60 + "b", {"regex": "(a+)+$", "which": which})
        assert caught.value.code == "pattern_too_slow"


def test_the_last_match_is_looked_for_in_the_end_of_a_long_text():
    text = "1" + "a" * patterns.MAX_TEXT + "2"
    assert extract(text, {"regex": "[0-9]"}) == "1"
    assert extract(text, {"regex": "[0-9]", "which": "last"}) == "2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>hm</think>\n\n42", "42"),
        ("hm</think>42", "42"),  # the template opened it in the prompt
        ("<think>hm", ""),
        ("\n<think>hm", ""),
        ("42 <think>or", "42 "),
        ("<think>a<think>b</think>c</think>42", "42"),
        ("<think>a</think>41<think>b</think>42", "42"),
        ("<think>a</think>42<think>b", "42"),
        ("<think></think>", ""),
        (" 42 ", " 42 "),
        ("", ""),
    ],
)
def test_thinking_is_cut_off(text, expected):
    assert strip_thinking(text) == expected


def test_thinking_with_other_marks_or_begun_in_the_prompt():
    assert strip_thinking("[THINK]a[/THINK]b", "[THINK]", "[/THINK]") == "b"
    assert strip_thinking("cut off while it thou", is_open=True) == ""
    assert strip_thinking("a</think>b", is_open=True) == "b"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["a", "b", "b"], "b"),
        (["b", "a", "a", "b"], "b"),  # a tie: the earliest
        ([None, None, "a"], "a"),
        (["", "", "a"], ""),
        ([None], None),
        ([], None),
    ],
)
def test_majority_vote(answers, expected):
    assert majority_vote(answers) == expected


def test_maj_at_k_sees_the_first_k():
    answers = ["a", None, "b", "b"]
    assert [maj_at_k(answers, k) for k in (1, 2, 3, 4)] == ["a", "a", "a", "b"]


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (1, 0, 1, 0.0),
        (1, 1, 1, 1.0),
        (10, 3, 1, 0.3),
        (5, 2, 2, 0.7),
        (10, 3, 5, 11 / 12),
        (5, 1, 5, 1.0),
        (4, 3, 2, 1.0),
    ],
)
def test_pass_at_k(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-15)


def test_pass_at_k_counts_the_draws_that_hold_a_right_sample():
    for n, c, k in [(6, 2, 3), (7, 1, 4), (5, 4, 2)]:
        draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == sum(map(any, draws)) / len(draws)
    assert pass_at_k(10_000, 1, 5_000) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k(4, 1, 5), "pass_at_k: 5 is not from 1 to 4, a row's number of samples: lower it or raise"),
        (lambda: pass_at_k(4, 1, 0), "pass_at_k: 0 is not from 1 to 4"),
        (lambda: pass_at_k(4, 5, 1), "pass_at_k: 5 of 4 samples cannot be right"),
        (lambda: maj_at_k(["a"], 2), "maj_at_k: 2 is not from 1 to 1"),
    ],
)
def test_impossible_counts_of_samples(call, message):
    with pytest.raises(ConfigError) as caught:
        call()
    assert message in str(caught.value)


def table(header):
    """The rows of the table of docs/scorers.md that has this header, as lists of cells."""
    lines = PAGE.split(f"{header}\n", 1)[1].splitlines()[1:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


@pytest.mark.parametrize(("steps", "text", "expected"), table("| steps | text | extracted |"))
def test_examples_of_the_documentation(steps, text, expected):
    pipeline = Pipeline.from_settings(yaml.safe_load(steps.strip("`")), "docs")
    assert pipeline(json.loads(text.strip("`"))) == json.loads(expected.strip("`"))


def test_the_documentation_names_every_step_and_option():
    rows = table("| step | gives | options |")
    shown = {name for row in rows for name in re.findall(r"`\{?([a-z_]+)", row[0])}
    assert shown == set(STEPS)
    for row in rows:
        name = re.match(r"`\{?([a-z_]+)", row[0])[1]
        options = re.findall(r"(?:^|, )`([a-z]+)`", re.sub(r"\([^)]*\)", "", row[2] if len(row) > 2 else ""))
        assert set(options) == set(STEPS[name].options), name
