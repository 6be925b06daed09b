"""The report page without a browser: its numbers, tables and charts."""

import json

import pytest
from report_page import Page, page_maker
from report_runs import (
    HOSTILE,
    SERIES,
    estimate,
    evaluation_run,
    generation_run,
    judged_line,
    write_run,
)

from jobs.cli import main


@pytest.fixture
def page_of(tmp_path):
    return page_maker(tmp_path)


def test_a_generation_run_has_its_numbers(tmp_path, page_of):
    page = page_of(generation_run(tmp_path / "run"))
    tiles = page.tiles()
    assert tiles["rows"] == "7 6 ok, 1 error"
    assert tiles["prompt tokens"] == "1,000 300 from the cache"
    assert tiles["completion tokens/s"] == "123.4"
    assert tiles["time"] == "1 min 5 s and 1.5 s for loading"
    assert (tiles["job"], tiles["kernels"], tiles["parameters"]) == ("arithmetic", "avx2", "134,515,008")
    assert tiles["temperature"] == "0.0 (job)"
    assert "top_k" not in tiles
    assert page.texts("th", scope="col", role="columnheader") == ["row", "prompt", "output", "ended", "tokens"]
    assert "Scores" not in page.texts("h2")
    assert {"prompt_too_long", "stop", "error"} <= set(page.texts("th", scope="row"))
    assert "q6: the prompt has 99 tokens and max_model_len is 50" in page.texts("td", class_="text")
    assert "prompt_too_long: the prompt has 99 tokens and max_model_len is 50" in page.texts("pre", dir="auto")


def test_the_default_place_is_the_run_and_the_command_says_so(tmp_path, capsys):
    run = generation_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().err == f"{run}: report: {run / 'report.html'}\n"
    assert Page(run / "report.html").texts("h1") == ["arithmetic"]
    assert not list(run.glob("*.tmp"))


def test_an_evaluation_has_scores_intervals_groups_and_judgements(tmp_path, page_of):
    page = page_of(evaluation_run(tmp_path / "run"))
    cells = page.texts("td", class_="num") + page.texts("td", class_="num strong")
    assert {"0.7778", "0.5778 to 0.9778", "0.6000"} <= set(cells)
    assert [name for name in page.texts("th", scope="row") if name.startswith("group")] == [
        "group 0",
        "group 1",
        "group 2",
    ]
    assert page.texts("th", role="columnheader") == ["row", "prompt", "output", "target", "extracted", "scores"]
    marks = [row["attrs"]["data-mark"] for row in page.all("tr", class_="row")]
    assert marks == ["right", "wrong", "right", "right", "wrong", "right", "right", "right", "right"]
    assert page.texts("td", class_="extracted")[:2] == ["0", "3"]
    whisker = page.all("svg", class_="whisker")
    assert len(whisker) == 4  # the score and three groups
    # 0.5778 and 0.9778 on a scale from 0 to 1
    first = page.all("line", class_="interval")[0]["attrs"]
    assert (first["x1"], first["x2"]) == ("57.78", "97.78")


@pytest.mark.parametrize(("num_groups", "is_said"), [(3, True), (20, False), (None, False)])
def test_few_groups_are_said_above_the_scores(tmp_path, page_of, num_groups, is_said):
    run = evaluation_run(tmp_path / "run")
    scores = json.loads((run / "scores.json").read_text())
    if num_groups is not None:
        scores["metrics"]["exact_match"]["num_groups"] = num_groups
    (run / "scores.json").write_text(json.dumps(scores))
    note = next(text for text in page_of(run).texts("p") if text.startswith("Rows: "))
    said = "Rows: 9 total, 9 scored, 0 errors, 0 skipped. exact_match: 3 groups: the interval is rough below some 20."
    assert (note == said) is is_said
    assert ("rough" in note) is is_said


def test_the_verdict_of_a_gate_is_shown(tmp_path, page_of):
    gate = [
        {"metric": "exact_match", "holds": True, "sentence": "exact_match is 0.7778, at least 0.30"},
        {"metric": "f1", "holds": False, "sentence": f"f1 {HOSTILE}"},
    ]
    page = page_of(evaluation_run(tmp_path / "run", gate=gate, exit_code=4))
    first, second = page.texts("li")[-2:]
    assert first == "holds exact_match is 0.7778, at least 0.30"
    assert second.startswith("does not hold f1 </script>")
    assert page.tiles()["exit code"] == "4"


def test_a_score_that_is_no_share_has_a_scale_of_its_own_and_lower_may_be_better(tmp_path, page_of):
    scores = {"metrics": {"token_perplexity": estimate(12.5, 11.0, 14.0, 3, higher_is_better=False)}, "groups": {}}
    line = {"id": "0", "index": 0, "sample": 0, "text": None, "finish_reason": "stop", "error": None, "usage": None,
            "logprob": -31.5, "num_tokens": 12, "scores": {}, "target": None, "extracted": None,
            "row": {"text": "Once upon a time"}}  # fmt: skip
    tokens = {"prompt": 12, "completion": 0, "cached": 0}
    page = page_of(write_run(tmp_path / "run", [line], scores=scores, tokens=tokens))
    assert not [name for name in page.tiles() if name.startswith("completion")]
    assert "token_perplexity (lower is better)" in page.texts("th", scope="row")
    interval = page.all("line", class_="interval")[0]["attrs"]
    assert (interval["x1"], interval["x2"]) == ("73.33", "93.33")  # on 0 to 15
    assert page.tiles()["logprob"] == "-31.5"
    assert page.tiles()["row.text"] == "Once upon a time"


@pytest.mark.parametrize(
    ("method", "low", "high"), [("bootstrap", 20.0, 42.0), ("bootstrap", 0.1, 0.9), ("normal", 2, 4)]
)
def test_a_score_that_does_not_end_at_1_marks_no_row_as_right(tmp_path, page_of, method, low, high):
    bleu = {**estimate((low + high) / 2, low, high, 2, higher_is_better=True), "method": method}
    lines = [judged_line(i, "x", "y", "x", True, scores={"bleu": score}) for i, score in enumerate((1.5, 100.0))]
    page = page_of(evaluation_run(tmp_path / "run", lines=lines, scores={"metrics": {"bleu": bleu}, "groups": {}}))
    assert [row["attrs"]["data-mark"] for row in page.all("tr", class_="row")] == ["", ""]
    assert page.texts("option") == ["all rows", "errors and skipped rows"]


def test_of_a_prompt_with_examples_the_row_shows_its_own_question(tmp_path, page_of):
    lines = [judged_line(0, "x", "y", "x", True, prompt="Q: one\nA: 1\n\nQ: two\nA:")]
    scores = {"metrics": {}, "groups": {}, "eval": {"few_shot": {"num": 1, "delimiter": "\n\n"}}}
    page = page_of(evaluation_run(tmp_path / "run", lines=lines, scores=scores))
    assert page.texts("td", class_="prompt") == ["…Q: two A:"]
    assert page.tiles()["few_shot.delimiter"] == '"\\n\\n"'  # blanks that nobody would see


def test_throughput_is_drawn_from_what_the_run_recorded(tmp_path, page_of):
    page = page_of(generation_run(tmp_path / "run"))
    (curve,) = page.all("polyline", class_="curve")
    # 10, 40, 30 and 10 tokens/s on a scale to 40, each for a quarter of the width of 306 from 44, height 156 from 10
    expected = [(44, 127), (120.5, 127), (120.5, 10), (197, 10), (197, 49), (273.5, 49), (273.5, 127), (350, 127)]
    points = [tuple(map(float, point.split(","))) for point in curve["attrs"]["points"].split()]
    assert points == expected
    assert "22.5 completion tokens/s over 8 s" in page.source
    page = page_of(generation_run(tmp_path / "run", series={**SERIES, "completion_tokens": [0, 0, 0, 0]}))
    assert "0.75 rows/s over 8 s" in page.source


@pytest.mark.parametrize(
    "series", [None, {}, [], {"seconds": [1.0], "rows": [1], "completion_tokens": [1]}, {**SERIES, "rows": [1]},
               {**SERIES, "rows": ["a", "b", "c", "d"]}],
)  # fmt: skip
def test_without_a_record_there_is_no_curve_and_a_word_about_it(tmp_path, page_of, series):
    page = page_of(generation_run(tmp_path / "run", series=series))
    assert not page.all("polyline")
    assert "No curve over time" in page.source
