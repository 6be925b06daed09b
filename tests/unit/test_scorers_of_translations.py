"""BLEU and chrF against values recorded from sacrebleu, and what happens without that package."""

import importlib.util

import pytest
from scorer_by_name import score

from jobs.evaluation.scorers import SCORERS, make_scorer
from nanovllm import ConfigError

needs_sacrebleu = pytest.mark.skipif(not importlib.util.find_spec("sacrebleu"), reason="sacrebleu is not installed")


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
