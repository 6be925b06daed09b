"""Every scorer against literal scores: of its reference implementation where there is one, else counted by hand."""

import importlib.util
import itertools
import json
import re
import sys
import threading
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs.evaluation.scorers import SCORERS, make_scorer, patterns
from jobs.evaluation.scorers.distance import MAX_CHARACTERS, edit_distance
from jobs.evaluation.scorers.number_text import find_numbers, write_number
from jobs.evaluation.scorers.overlap import common_subsequence
from nanovllm import ConfigError, RequestError

PAGE = (Path(__file__).parents[2] / "docs" / "scorers.md").read_text("utf-8")
needs_sacrebleu = pytest.mark.skipif(not importlib.util.find_spec("sacrebleu"), reason="sacrebleu is not installed")


def score(name, prediction, target, **options):
    return make_scorer({name: options}, "eval.scorers")(prediction, target)


# exact_match: the options of lm-evaluation-harness 0.4 and what it gives


@pytest.mark.parametrize(
    ("prediction", "target", "options", "expected"),
    [
        ("Paris", "Paris", {}, 1),
        ("Paris", "paris", {}, 0),
        ("Paris ", "Paris", {}, 0),
        ("Paris", "paris", {"ignore_case": True}, 1),
        ("Pa.ris!", "Paris", {"ignore_punctuation": True}, 1),
        ("Paris 2024", "Paris 1900", {"ignore_numbers": True}, 1),
        ("The  Beatles", "Beatles", {"ignore_articles": True}, 1),
        ("Theodore", "odore", {"ignore_articles": True}, 0),
        (" New\n York ", "New York", {"ignore_whitespace": True}, 1),
        ("NewYork", "New York", {"ignore_whitespace": True}, 0),
        ("1,000.0", "1000", {"ignore_numbers_formatting": True}, 1),
        ("+07.50 m", "7.5 m", {"ignore_numbers_formatting": True}, 1),
        ("1.5e3", "1500", {"ignore_numbers_formatting": True}, 1),
        ("-0.0", "0", {"ignore_numbers_formatting": True}, 1),
        ("-5", "5", {"ignore_numbers_formatting": True}, 0),
        ("10,00", "1000", {"ignore_numbers_formatting": True}, 0),
        ("1.2.30", "1.2.3", {"ignore_numbers_formatting": True}, 0),
        ("1e999999999", "1e99999999", {"ignore_numbers_formatting": True}, 0),
        (
            "0.1234567890123456789012345678901234",
            "0.123456789012345678901234567890",
            {"ignore_numbers_formatting": True},
            0,
        ),
        ("#### $1,000", "1000", {"regexes_to_ignore": [",", r"\$", "(?s).*#### "]}, 1),
        ("yes", ["no", "yes"], {}, 1),
        ("42", 42, {}, 1),
        ("0.5", [0.25, 0.5], {}, 1),
        ("", "", {}, 1),
    ],
)
def test_exact_match(prediction, target, options, expected):
    assert score("exact_match", prediction, target, **options) == expected


# f1: what evaluate-v2.0.py of SQuAD gives


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ("the cat sat", "a cat sat down", 0.8),  # 2 of 2 and 2 of 3 words
        ("The Denver Broncos!", "denver broncos", 1.0),
        ("Broncos Broncos", "Broncos", 2 / 3),  # a word counts as often as both have it
        ("Denver", "Carolina", 0.0),
        ("the", "a", 1.0),  # no words on either side
        ("", "Denver", 0.0),
        ("Denver", ["Carolina Panthers", "Denver Broncos"], 2 / 3),
    ],
)
def test_f1(prediction, target, expected):
    assert score("f1", prediction, target) == pytest.approx(expected, abs=1e-12)


# rouge_l: rouge-score 0.1.2, RougeScorer(["rougeL"]).score(target, prediction)["rougeL"].fmeasure


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ("the cat sat on the mat", "the cat is on the mat", 0.8333333333333334),
        ("The quick brown fox jumps over the lazy dog.", "A quick fox jumped over a lazy dog!", 0.5882352941176471),
        ("a b c d", "d c b a", 0.25),
        ("don't stop", "dont stop", 0.4),
        ("Café 3.5 naïve", "cafe 3 5 naive", 0.4444444444444445),
        ("", "x", 0.0),
        ("same same same", "same", 0.5),
        ("police killed the gunman", "the gunman kill police", 0.5),
        ("the cat sat on the mat", ["no words shared here", "the cat is on a mat"], 0.6666666666666666),
    ],
)
def test_rouge_l(prediction, target, expected):
    assert score("rouge_l", prediction, target) == pytest.approx(expected, abs=1e-12)


def table_of_subsequences(left, right):
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def table_of_distances(left, right):
    row = list(range(len(right) + 1))
    for i, one in enumerate(left, start=1):
        row, above = [i], row
        for j, other in enumerate(right, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (one != other)))
    return row[-1]


short_texts = st.text("abc", max_size=80)


@given(short_texts, short_texts)
def test_bit_vectors_give_what_the_textbook_tables_give(left, right):
    assert common_subsequence(left, right) == table_of_subsequences(left, right)
    assert edit_distance(left, right) == table_of_distances(left, right)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [("kitten", "sitting", 3), ("intention", "execution", 5), ("", "abc", 3), ("flaw", "lawn", 2), ("", "", 0)],
)
def test_edit_distances_of_the_literature(left, right, expected):
    assert edit_distance(left, right) == edit_distance(right, left) == expected


@pytest.mark.parametrize(
    ("prediction", "target", "options", "expected"),
    [
        ("kitten", "sitting", {}, 4 / 7),
        ("", "", {}, 1),
        ("abc", "", {}, 0),
        ("ABC", "abc", {}, 0),
        ("ABC", "abc", {"ignore_case": True}, 1),
        (" a\n b ", "a b", {"ignore_whitespace": True}, 1),
        ("kitten", ["dog", "kitte"], {}, 5 / 6),
        ("x" * MAX_CHARACTERS + "y", "x" * MAX_CHARACTERS + "zz", {}, 1),
    ],
)
def test_levenshtein(prediction, target, options, expected):
    assert score("levenshtein", prediction, target, **options) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "target", "options", "expected"),
    [
        ("It is Paris.", "Paris", {}, 1),
        ("It is paris.", "Paris", {}, 0),
        ("It is paris.", "PARIS", {"ignore_case": True}, 1),
        ("Parisian", "Paris", {}, 1),
        ("Parisian", "Paris", {"whole_words": True}, 0),
        ("in C++, say", "C++", {"whole_words": True}, 1),
        ("in paris", "Paris", {"whole_words": True, "ignore_case": True}, 1),
        ("a.c", "abc", {"whole_words": True}, 0),
        ("either", ["x", "the"], {}, 1),
    ],
)
def test_includes(prediction, target, options, expected):
    assert score("includes", prediction, target, **options) == expected


@pytest.mark.parametrize(
    ("prediction", "target", "options", "expected"),
    [
        ("call 555-1234 now", "[0-9]{3}-[0-9]{4}", {}, 1),
        ("call 555-1234 now", "[0-9]{3}-[0-9]{4}", {"full": True}, 0),
        ("555-1234", "[0-9]{3}-[0-9]{4}", {"full": True}, 1),
        ("YES", "yes", {}, 0),
        ("YES", "yes", {"ignore_case": True}, 1),
        ("a\nb", "a.b", {}, 0),
        ("a\nb", "a.b", {"dot_all": True}, 1),
        ("b", ["^a$", "^b$"], {}, 1),
    ],
)
def test_regex(prediction, target, options, expected):
    assert score("regex", prediction, target, **options) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
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


@pytest.mark.parametrize(
    ("prediction", "target", "options", "expected"),
    [
        ("x = 1\r\n\r\n\tprint(x)  \n", "x = 1\n    print(x)", {}, 1),
        ("Sure:\n```python\n  x = 1\n```\nDone.", "x = 1", {}, 1),
        ("```\nx = 1\ny = 2", "x = 1\ny = 2", {}, 1),
        ("if a:\n    b", "if a:\n  b", {}, 0),
        ("x = 1", "x=1", {}, 0),
        ("x = 1  # one", "x = 1", {}, 0),
        ("# all\nx = '#1'  # one", "x = '#1'", {"line_comment": "#"}, 1),
        (r"x = 'it\'s #1'", r"x = 'it\'s #2'", {"line_comment": "#"}, 0),
        ("int x; // one", "int x;", {"line_comment": "//"}, 1),
        ("SELECT 1", "select 1", {"ignore_case": True}, 1),
        ("b", ["a", "b"], {}, 1),
        ("__import__('os').abort()", "x", {}, 0),
    ],
)
def test_code_match(prediction, target, options, expected):
    assert score("code_match", prediction, target, **options) == expected


# sacrebleu 2.6.0: sentence_bleu, sentence_chrf, and the corpus values of all three rows with their references

TRANSLATIONS = [
    ("the cat sat on the mat", ["the cat is on the mat", "there is a cat on the mat"]),
    ("Hello there, General Kenobi!", "hello there general kenobi"),
    ("it is raining", ["it rains today"]),
]


@needs_sacrebleu
@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("bleu", {}, [37.99178428257963, 8.116697886877475, 27.516060407455225]),
        ("bleu", {"lowercase": True}, [37.99178428257963, 22.957488466614336, 27.516060407455225]),
        ("bleu", {"tokenize": "none"}, [37.99178428257963, 0.0, 27.516060407455225]),
        ("chrf", {}, [64.5779420625287, 58.18647125888886, 21.355443860369878]),
        ("chrf", {"word_order": 2}, [66.36067072084818, 46.526025599196466, 20.18781857774111]),
    ],
)
def test_scores_of_translations(name, options, expected):
    assert [score(name, *row, **options) for row in TRANSLATIONS] == pytest.approx(expected, abs=1e-9)


@needs_sacrebleu
def test_the_corpus_score_is_no_mean():
    predictions, targets = map(list, zip(*TRANSLATIONS, strict=True))
    assert make_scorer("bleu", "x").corpus(predictions, targets) == pytest.approx(18.12928843228795, abs=1e-9)
    assert make_scorer("chrf", "x").corpus(predictions, targets) == pytest.approx(52.4319790889807, abs=1e-9)
    assert make_scorer("bleu", "x").corpus([None, "a"], ["a b", "b"]) == 0.0


def test_a_missing_package_is_said_with_its_cure(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^job.yaml: bleu needs the sacrebleu package; run: pip install 'nanovllm\["):
        make_scorer("bleu", "job.yaml")


def test_only_corpus_scorers_need_a_package():
    assert {name for name, info in SCORERS.items() if info.needs} == {"bleu", "chrf"}
    assert {name for name, info in SCORERS.items() if info.corpus} == {"bleu", "chrf"}


# what is refused before the run


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("exact_macth", "job.yaml: there is no scorer 'exact_macth': did you mean 'exact_match'?"),
        ({"numeric": {"tolerence": 1}}, "job.yaml: numeric has no option 'tolerence': did you mean 'tolerance'?"),
        ({"f1": {"x": 1}}, "job.yaml: f1 has no option 'x': it takes none"),
        ({"numeric": {"tolerance": -1}}, "job.yaml: numeric.tolerance is -1, expected a number of at least 0"),
        ({"numeric": {"tolerance": True}}, "job.yaml: numeric.tolerance is True, expected a number of at least 0"),
        ({"numeric": {"tolerance": float("nan")}}, "job.yaml: numeric.tolerance is nan, expected"),
        ({"numeric": {"which": "middle"}}, "job.yaml: numeric.which is 'middle', expected one of first, last, only"),
        ({"numeric": {"which": []}}, "job.yaml: numeric.which is [], expected one of first, last, only"),
        ({"numeric": 0.01}, "job.yaml: numeric is given 0.01, expected options with values"),
        ({"exact_match": {"ignore_case": "yes"}}, "job.yaml: exact_match.ignore_case is 'yes', expected true or false"),
        ({"exact_match": {"regexes_to_ignore": ["("]}}, "not a regular expression: missing ), unterminated subpattern"),
        ({"exact_match": {"regexes_to_ignore": ","}}, "expected a list of regular expressions"),
        ({"exact_match": {"name": 1}}, "job.yaml: exact_match.name is 1, expected a text"),
        ({"choice_letter": {"letters": "abc"}}, "expected different capital letters such as ABCD"),
        ({"json_match": {"fields": []}}, "json_match.fields is [], expected a list of texts"),
        ({"chrf": {"char_order": 0}}, "chrf.char_order is 0, expected an integer from 1 to 20"),
        ({"f1": None, "rouge_l": None}, "expected a scorer's name, or one name with its options"),
        ({1: None}, "expected a scorer's name"),
        (None, "job.yaml is None, expected a scorer's name"),
        ({"python": "os:getcwd"}, "job.yaml: python would run the code of os:getcwd: set eval.allow_code to true"),
    ],
)
def test_wrong_settings_are_named(spec, message):
    with pytest.raises(ConfigError) as caught:
        make_scorer(spec, "job.yaml")
    assert message in str(caught.value)


def test_a_scorer_can_be_renamed():
    scorer = make_scorer({"numeric": {"tolerance": 1, "name": "near"}}, "x")
    assert (scorer.name, scorer("3", 4), scorer.higher_is_better, scorer.has_corpus_score) == ("near", 1.0, True, False)
    assert make_scorer({"numeric": None}, "x").name == "numeric"


@pytest.mark.parametrize("name", [name for name, info in SCORERS.items() if not info.needs])
def test_nothing_extracted_is_wrong(name):
    assert make_scorer(name, "x")(None, "") == 0.0


# what a row's target cannot be

BAD_TARGETS = [
    *((name, target) for name in ("exact_match", "f1", "rouge_l", "levenshtein", "code_match", "includes", "regex")
      for target in (None, True, {"a": 1}, [], [None], [["a"]], float("nan"))),
    *(("numeric", target) for target in (None, True, "many", "1 or 2", [], ["x"], float("inf"), {})),
    *(("choice_letter", target) for target in (None, "K", "AB", 10, -1, True, [], {})),
    *(("json_match", target) for target in (None, "x", 1, [], {}, "{}", [1])),
    ("includes", ""), ("includes", [" "]), ("regex", "("), ("regex", "a" * 5001),
]  # fmt: skip


@pytest.mark.parametrize(("name", "target"), BAD_TARGETS, ids=repr)
def test_a_target_of_the_wrong_kind_is_an_error_of_its_row(name, target):
    with pytest.raises(RequestError, match=rf"^scorer {name}: the target is .*, expected ") as caught:
        make_scorer(name, "x")("text", target)
    assert caught.value.code == "bad_target"
    assert len(caught.value.message) < 300


def test_a_field_that_the_target_lacks():
    with pytest.raises(RequestError, match="expected an object with the field 'b', which fields names"):
        score("json_match", "{}", {"a": 1}, fields=["a", "b"])


# patterns that would run for ever


def test_a_pattern_that_explodes_ends_as_an_error_of_its_row(monkeypatch):
    monkeypatch.setattr(patterns, "MAX_SECONDS", 0.05)
    text = "a" * 60 + "b"
    with pytest.raises(RequestError, match=r"more than 0\.05 s on a text: write it without repetitions") as caught:
        score("regex", text, "(a+)+$")
    assert caught.value.code == "pattern_too_slow"
    with pytest.raises(RequestError):
        score("exact_match", text, "x", regexes_to_ignore=["(a|aa)+$"])
    assert score("regex", text, "a+b$") == 1


def test_only_the_beginning_of_a_text_is_searched():
    assert score("regex", "a" * patterns.MAX_TEXT + "b", "b") == 0
    assert score("regex", "a" * (patterns.MAX_TEXT - 1) + "b", "b") == 1


def test_patterns_work_outside_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(score("regex", "abc", "b")))
    thread.start()
    thread.join()
    assert found == [1.0]


# own scorers


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's on the path; its name."""
    (tmp_path / "scorers_of_mine.py").write_text(
        "def length(prediction, target, unit=1):\n    return abs(len(prediction) - len(target)) * unit\n"
        "def broken(prediction, target):\n    return {}[prediction]\n"
        "def word(prediction, target):\n    return 'good'\n"
        "def same(prediction, target):\n    return prediction == target\n"
        "number = 3\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "scorers_of_mine"
    sys.modules.pop("scorers_of_mine", None)


def test_an_own_scorer(own_module):
    spec = {"python": {"function": f"{own_module}:length", "higher_is_better": False, "options": {"unit": 2}}}
    scorer = make_scorer(spec, "x", allow_code=True)
    assert (scorer.name, scorer.higher_is_better, scorer("abc", "a"), scorer(None, "ab")) == ("length", False, 4.0, 4.0)
    same = make_scorer({"python": f"{own_module}:same"}, "x", allow_code=True)
    assert (same.name, same.higher_is_better, same("a", "a"), same(None, "")) == ("same", True, 1.0, 0.0)


def test_an_own_scorer_is_not_imported_without_leave(own_module):
    with pytest.raises(ConfigError, match=r"set eval\.allow_code to true"):
        make_scorer({"python": f"{own_module}:same"}, "x")
    assert own_module not in sys.modules


@pytest.mark.parametrize("name", ["broken", "word"])
def test_an_own_scorer_that_fails_ends_its_row(own_module, name):
    scorer = make_scorer({"python": f"{own_module}:{name}"}, "x", allow_code=True)
    with pytest.raises(RequestError, match=rf"^scorer {own_module}:{name} (raised KeyError|gave 'good')") as caught:
        scorer("a", "b")
    assert caught.value.code == "scorer_failed"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("scorers_of_mine", "expected module:function"),
        ("no_such_module_here:f", "cannot import 'no_such_module_here' (ModuleNotFoundError"),
        ("scorers_of_mine:absent", "module 'scorers_of_mine' has no function 'absent'"),
        ("scorers_of_mine:number", "module 'scorers_of_mine' has no function 'number'"),
        (None, "python is '', expected module:function"),
    ],
)
def test_an_own_scorer_that_is_not_there(own_module, address, message):
    with pytest.raises(ConfigError) as caught:
        make_scorer({"python": address}, "x", allow_code=True)
    assert message in str(caught.value)


# the documentation


def table(header):
    """The rows of the table of docs/scorers.md that has this header, as lists of cells."""
    lines = PAGE.split(f"{header}\n", 1)[1].splitlines()[1:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def code_of(cell):
    return re.fullmatch(r"`(.*)`", cell)[1]


@pytest.mark.parametrize(("spec", "text", "target", "expected"), table("| scorer | text | target | score |"))
def test_examples_of_the_documentation(spec, text, target, expected):
    scorer = make_scorer(yaml.safe_load(code_of(spec)), "docs")
    assert scorer(json.loads(code_of(text)), json.loads(code_of(target))) == pytest.approx(float(expected), abs=5e-5)


def test_the_documentation_names_every_scorer_and_option():
    rows = {code_of(row[0]): row[2] if len(row) > 2 else "" for row in table("| scorer | says | options |")}
    assert set(rows) == {*SCORERS, "python"}
    for name, info in SCORERS.items():
        shown = set(re.findall(r"(?:^|[,(] ?)`([a-z_]{3,})`", re.sub(r"\([^)]*\)", "", rows[name])))
        assert shown == info.options, name
