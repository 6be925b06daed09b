"""Scorers of what a text says, numbers, letters and JSON, against scores counted by hand."""

import pytest
from scorer_by_name import score

from jobs.evaluation.scorers import SCORERS
from jobs.evaluation.scorers.number_text import find_numbers, write_number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("−3 or –4 or ‑5 or －6", ["-3", "-4", "-5", "-6"]),
        ("pages 3–4, 10−2", ["3", "4", "10", "2"]),
        ("$1,234.50", ["1234.5"]),
        ("-$5 and $-5", ["-5", "-5"]),
        ("USD 5, Rs.7 and 3 €", ["5", "7", "3"]),
        ("x=-5, y = −7", ["-5", "-7"]),
        ("3-4, (x)-2, 2024-05-06", ["3", "4", "2", "2024", "5", "6"]),
        ("H2O, B2B, v1.2.3", []),
        ("1.2.3", ["1.2"]),
        ("10/05/2024", ["10", "5", "2024"]),
        ("3/4 of 1 1/2, ½ or 1½", ["0.75", "1.5", "0.5", "1.5"]),
        (r"\frac{3}{4}, 2\dfrac{1}{2}", ["0.75", "2.5"]),
        ("1/3", ["1/3"]),
        ("1e5, 2.5E-3", ["100000", "0.0025"]),
        (r"3 x 10^5, 6.02 × 10^{-2}, 4 \times 10^{3}", ["300000", "0.0602", "4000"]),
        ("5 million, 2.5 thousand", ["5000000", "2500"]),
        (r"1{,}000, 1\,000, 1'000, 1\u202f000".replace(r"\u202f", "\u202f"), ["1000"] * 4),
        ("1,2,3", ["1", "2", "3"]),
        ("1,00", ["1", "0"]),
        ("5.", ["5"]),
        (".5 and so...6", ["0.5", "0.6"]),
        ("-0", ["0"]),
        ("5kg at 3 km/h", ["5", "3"]),
        ("9" * 500, []),
        ("4/0", []),
        ("٣", []),
        ("", []),
    ],
)
def test_the_numbers_of_a_text(text, expected):
    assert [write_number(number.value) for number in find_numbers(text)] == expected


@pytest.mark.parametrize(
    ("prediction", "target", "options", "expected"),
    [
        ("The total is $1,250.50.", 1250.5, {}, 1),
        ("2 + 3 = 5", "5", {}, 1),
        ("2 + 3 = 5", "2", {}, 0),
        ("2 + 3 = 5", "2", {"which": "first"}, 1),
        ("2 or 3", 3, {"which": "only"}, 0),
        ("no idea", 3, {}, 0),
        ("0.3", "0.2", {"tolerance": 0.1}, 1),  # as decimals, not as binary numbers
        ("0.3001", "0.2", {"tolerance": 0.1}, 0),
        ("-105", "-100", {"relative_tolerance": 0.05}, 1),
        ("-105.1", "-100", {"relative_tolerance": 0.05}, 0),
        ("0.333", "1/3", {}, 0),
        ("0.333", "1/3", {"tolerance": 0.001}, 1),
        ("2/6", "1/3", {}, 1),
        ("50%", "0.5", {}, 1),
        ("50%", 50, {}, 1),
        ("0.5", "50%", {}, 1),
        ("0.5%", "50%", {}, 0),
        ("0.5", "50", {}, 0),
        ("50%", 50, {"percent": "fraction"}, 0),
        ("50%", 0.5, {"percent": "unit"}, 0),
        ("1.234,5", "1234,5", {"decimal_comma": True}, 1),
        ("7", [5, "7"], {}, 1),
        ("12345678901234567890123", "12345678901234567890124", {}, 0),
    ],
)
def test_numeric(prediction, target, options, expected):
    assert score("numeric", prediction, target, **options) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("(b).", "B"),
        (" **C** ", "C"),
        ("The answer is C.", "C"),
        ("answer: (d)", "D"),
        ("Answer:\nC", "C"),
        ("The correct choice is: **D**", "D"),
        ("Option A is wrong, so the answer is B", "B"),
        ("B. Because of C, no, the answer is A", "A"),
        (r"so \boxed{D}", "D"),
        (r"so \boxed{\text{B}}", "B"),
        ("B) Paris", "B"),
        ("A: Paris, not B", "A"),
        ("It must be (C).", "C"),
        ("I think it is B because of it", "B"),
        ("the answer is b.", "B"),
        ("Answer: c", "C"),
        ("The answer is B. Option C is wrong, and so is choice D", "B"),
        ("The answer should be B because C is wrong", "B"),
        ("Answer choice C is tempting, but the answer must be: (d)", "D"),
        ("Option D", "D"),
        ("The answer is A because of B", "A"),
        ("Answer: A day in the park", None),
        ("Answer: I think it is C", "C"),
        ("The answer is e.g. (c)", "C"),
        ("A day in the park", None),
        ("I like A lot", None),
        ("The answer is a dog", None),
        ("the B-cell's D'Artagnan", None),
        ("K", None),
        ("", None),
    ],
)
def test_the_chosen_letter(text, expected):
    letter = SCORERS["choice_letter"].function
    assert {answer for answer in "ABCDEFGHIJ" if letter(text, answer)} == ({expected} if expected else set())


def test_targets_of_choice_letter():
    assert score("choice_letter", "B", 1) == 1
    assert score("choice_letter", "B", "(b)") == 1
    assert score("choice_letter", "B", ["A", "B"]) == 1
    assert score("choice_letter", "Z", "Z", letters="XYZ") == 1
    assert score("choice_letter", "E", "A", letters="ABCD") == 0


@pytest.mark.parametrize(
    ("prediction", "target", "options", "expected"),
    [
        ('{"a": 1, "b": "x", "c": 0}', {"a": 1, "b": "y"}, {}, 0.5),
        ('{"a": 1, "b": "x"}', {"a": 1, "b": "y"}, {"score": "all"}, 0),
        ('{"a": 1, "b": "x"}', {"a": 1, "b": "y"}, {"score": "all", "fields": ["a"]}, 1),
        ('{"a": 1.0}', '{"a": 1}', {}, 1),
        ('{"a": true}', {"a": 1}, {}, 0),
        ('{"a": [1, {"b": true}]}', {"a": [1, {"b": 1}]}, {}, 0),
        ('{"a": [1, 2]}', {"a": [1]}, {}, 0),
        ('{"a": {"b": "X"}}', {"a": {"b": "x"}}, {"ignore_case": True}, 1),
        ('{"a": null}', {"a": None}, {}, 1),
        ("{}", {"a": None}, {}, 0),
        ('f() { return 1; } then ```json\n{"a": 2}\n``` and {"a": 3}', {"a": 2}, {}, 1),
        ('{"a": 2, "a": 2}', {"a": 2}, {}, 0),
        ('{"a": NaN, "b": {"a": 2}}', {"a": 2}, {}, 0),
        ('{"a": 2', {"a": 2}, {}, 0),
        ("nothing", {"a": 2}, {}, 0),
        ("{" * 5000, {"a": 2}, {}, 0),
        ('{"a": 2}', [{"a": 1}, {"a": 2}], {}, 1),
    ],
)
def test_json_match(prediction, target, options, expected):
    assert score("json_match", prediction, target, **options) == expected
