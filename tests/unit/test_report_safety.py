"""Nothing in a run is obeyed by the report page, and everything on it has a name."""

import re

import pytest
from report_page import page_maker
from report_runs import (
    HOSTILE,
    error_line,
    estimate,
    evaluation_run,
    generation_run,
    judged_line,
    write_run,
)


@pytest.fixture
def page_of(tmp_path):
    return page_maker(tmp_path)


HOSTILE_PLACES = ("prompt", "text", "target", "extracted", "group", "id")


@pytest.mark.parametrize("place", HOSTILE_PLACES)
def test_hostile_text_in_a_row_is_text(tmp_path, page_of, place):
    line = {**judged_line(0, "a", "b", "c", False), place: HOSTILE}
    _check_is_text(page_of(evaluation_run(tmp_path / "run", lines=[line], num=1, wrong=(0,))))


def test_hostile_text_around_rows_is_text(tmp_path, page_of):
    lines = [error_line(0, HOSTILE, HOSTILE, True), {**judged_line(1, "a", "b", "c", True), "scores": {HOSTILE: 1.0}}]
    lines[1]["row"] = {HOSTILE: HOSTILE}
    lines[1]["choices"] = [{"text": HOSTILE, "logprob": -1.0, "num_tokens": 1, "is_greedy": False}]
    lines[1]["finish_reason"] = HOSTILE
    metric = {HOSTILE: estimate(0.5, 0.1, 0.9, 2, higher_is_better=True)}
    metric[HOSTILE]["method"] = HOSTILE
    scores = {"metrics": metric, "groups": {HOSTILE: metric}, "task": HOSTILE, "eval": {HOSTILE: HOSTILE}}
    run = write_run(tmp_path / "run", lines, scores=scores, model={"name": HOSTILE}, kernels=HOSTILE,
                    job={"name": HOSTILE, "prompt": {"system": HOSTILE}}, ended=HOSTILE)  # fmt: skip
    _check_is_text(page_of(run))


def _check_is_text(page):
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not page.all("img")
    assert not re.search("[\0\x1b\u202e\ud800]", page.source)
    assert "alert(1)" in page.source
    assert "⟦U+0000⟧⟦U+001B⟧[31m ⟦U+202E⟧txt.exe ⟦U+D800⟧ \u200f שלום" in page.source
    assert not any(name.startswith("on") for e in page.elements for name in e["attrs"])
    assert not any("alert" in e["attrs"].get("class", "") for e in page.elements)


def test_the_policy_allows_the_pages_own_script_and_style_alone(tmp_path, page_of):
    import base64
    import hashlib

    page = page_of(generation_run(tmp_path / "run"))
    (policy,) = [e["attrs"]["content"] for e in page.all("meta") if "http-equiv" in e["attrs"]]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        digest = hashlib.sha256(page.all(tag)[0]["text"].encode()).digest()
        assert rules[rule] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert not any("style" in e["attrs"] for e in page.elements)
    addresses = [e["attrs"][name] for e in page.elements for name in ("src", "href", "action") if name in e["attrs"]]
    assert addresses
    assert all(address.startswith("#") for address in addresses)


def test_everything_has_a_name_for_who_cannot_see_it(tmp_path, page_of):
    page = page_of(evaluation_run(tmp_path / "run"))
    ids = [e["attrs"]["id"] for e in page.elements if "id" in e["attrs"]]
    assert len(ids) == len(set(ids))
    for name in ("aria-labelledby", "aria-controls", "for"):
        assert {i for e in page.elements for i in e["attrs"].get(name, "").split()} <= set(ids)
    assert {e["attrs"]["href"][1:] for e in page.all("a")} <= set(ids)
    for chart in page.all("svg", role="img"):
        assert len(chart["attrs"]["aria-label"]) > 20
    assert [len(page.all(tag)) for tag in ("h1", "main", "header", "nav", "footer")] == [1] * 5
    assert page.all("html")[0]["attrs"]["lang"] == "en"
    assert all("scope" in e["attrs"] for e in page.all("th"))
