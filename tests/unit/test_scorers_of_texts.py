"""Scorers of texts against literal scores: of their reference implementation where there is one, else by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scorer_by_name import score

from jobs.evaluation.scorers.distance import MAX_CHARACTERS, edit_distance
from jobs.evaluation.scorers.overlap import common_subsequence

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
        (".1", "0.10", {"ignore_numbers_formatting": True}, 1),
        ("-.50 m, $.25", "-0.5 m, $0.250", {"ignore_numbers_formatting": True}, 1),
        ("1.5e-1", ".15", {"ignore_numbers_formatting": True}, 1),
        ("...5", "..0.5", {"ignore_numbers_formatting": True}, 0),
        ("v.5", "v0.5", {"ignore_numbers_formatting": True}, 0),
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
        ("−1,234.50", "-1234.5", {"ignore_numbers_formatting": True}, 1),
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
