"""Scorers that users write themselves: run only with leave, and their mishaps end one row."""

import sys

import pytest

from jobs.evaluation.scorers import make_scorer
from nanovllm import ConfigError, RequestError


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's on the path; its name."""
    (tmp_path / "scorers_of_mine.py").write_text(
        "def length(prediction, target, unit=1):\n    return abs(len(prediction) - len(target)) * unit\n"
        "def broken(prediction, target):\n    return {}[prediction]\n"
        "def word(prediction, target):\n    return 'good'\n"
        "def same(prediction, target):\n    return prediction == target\n"
        "import numpy\n"
        "def numpys(prediction, target):\n    return numpy.char.equal(prediction, target)[()]\n"
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


def test_an_own_scorer_may_give_numpys_bool(own_module):
    scorer = make_scorer({"python": f"{own_module}:numpys"}, "x", allow_code=True)
    assert (scorer("a", "a"), scorer("a", "b")) == (1.0, 0.0)


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
