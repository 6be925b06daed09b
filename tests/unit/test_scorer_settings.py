"""What a scorer refuses, of a job file and of a row, and that no pattern holds a run for ever."""

import threading

import pytest
from scorer_by_name import score

from jobs.evaluation.scorers import SCORERS, make_scorer, patterns
from nanovllm import ConfigError, RequestError

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
