"""The comparison in a report: pairing of rows, flips, and words about what is unfair; without a browser."""

import json
import re

import pytest
from report_runs import HOSTILE, error_line, estimate, evaluation_run, generation_run, judged_line, result_line

from jobs.cli import main
from jobs.report.pairs import Comparison, RowIndex
from jobs.report.source import FinishedRun


@pytest.fixture
def runs(tmp_path):
    """Nine questions: A is wrong about 1 and 4, B about 4, 5 and 7."""
    return evaluation_run(tmp_path / "a", wrong=(1, 4)), evaluation_run(tmp_path / "b", wrong=(4, 5, 7))


def compare(a, b, num_rows=None):
    return Comparison(FinishedRun(a), FinishedRun(b), num_rows)


def test_a_metric_is_compared_over_the_rows_that_both_have(runs):
    comparison = compare(*runs)
    (line,) = comparison.lines
    found = line.found
    assert (found.metric.name, found.wins, found.losses, found.ties) == ("exact_match", 1, 2, 6)
    assert (found.a, found.b, found.difference.value) == pytest.approx((7 / 9, 6 / 9, -1 / 9))
    assert found.difference.low < -1 / 9 < found.difference.high
    # 0 lies right of the difference on the scale
    assert line.whisker.low < line.whisker.value < line.zero
    assert comparison.note == "9 rows are in both."
    assert comparison.warnings == []


def test_flips_are_the_rows_whose_score_changed(runs):
    comparison = compare(*runs)
    assert comparison.flips_title == "Results with different exact_match: 3"
    flips = [(a.index, a.scores["exact_match"], b.scores["exact_match"]) for a, b in comparison.flips()]
    assert flips == [(1, 0.0, 1.0), (5, 1.0, 0.0), (7, 1.0, 0.0)]


def test_flips_beyond_the_limit_are_counted(runs):
    comparison = compare(*runs, num_rows=2)
    assert [a.index for a, _ in comparison.flips()] == [1, 5]
    assert comparison.flips_note == "The first 2; 1 are left out. All of them: --rows all."


def test_the_name_of_a_metric_keeps_its_letters(tmp_path):
    folders = []
    for name in "ab":
        lines = [judged_line(i, "x", "y", "z", 0, scores={"bleu": 3.0}) for i in range(2)]
        bleu = {**estimate(3.0, 1.0, 5.0, 2, higher_is_better=True), "method": "bootstrap"}
        folders.append(
            evaluation_run(tmp_path / name, lines=lines, scores={"task": "generate", "metrics": {"bleu": bleu}})
        )
    assert compare(*folders).warnings[0].startswith("bleu: the means of the rows' scores are compared")


def test_less_may_be_better(tmp_path):
    folders = []
    for name, values in (("a", (3.0, 2.0, 5.0)), ("b", (1.0, 2.0, 6.0))):
        lines = [judged_line(i, "x", "y", "z", 0, scores={"distance": value}) for i, value in enumerate(values)]
        scores = {"task": "generate", "metrics": {"distance": estimate(3.0, 1.0, 5.0, 3, higher_is_better=False)}}
        folders.append(evaluation_run(tmp_path / name, lines=lines, scores=scores))
    (line,) = compare(*folders).lines
    assert (line.found.wins, line.found.losses, line.found.ties) == (1, 1, 1)
    assert line.found.difference.value == pytest.approx(-1 / 3)


def test_rows_are_paired_by_id_and_sample_wherever_they_stand(tmp_path):
    lines = [{**judged_line(i, "x", "y", "z", i != 2), "sample": s, "id": f"q{i}"} for i in range(4) for s in range(2)]
    other = [{**line, "index": 9 - line["index"]} for line in reversed(lines) if line["id"] != "q3"]
    comparison = compare(evaluation_run(tmp_path / "a", lines=lines), evaluation_run(tmp_path / "b", lines=other))
    assert comparison.note == "3 rows are in both."
    assert list(comparison.flips()) == []
    assert comparison.lines[0].found.ties == 3


def test_samples_of_a_row_are_one_observation(tmp_path):
    folders = []
    for name, rights in (("a", (1, 0, 0, 0)), ("b", (1, 1, 0, 0))):
        lines = [{**judged_line(i // 2, "x", "y", "z", right), "sample": i % 2} for i, right in enumerate(rights)]
        folders.append(evaluation_run(tmp_path / name, lines=lines))
    comparison = compare(*folders)
    found = comparison.lines[0].found
    assert (found.a, found.b, found.wins, found.losses, found.ties) == (0.25, 0.5, 1, 0, 1)
    assert [(a.index, a.sample) for a, _ in comparison.flips()] == [(0, 1)]


def test_a_row_that_failed_is_a_wrong_one(tmp_path):
    folders = []
    for name, right in (("a", True), ("b", False)):
        lines = [judged_line(i, "x", "y", "z", right) for i in range(2)]
        other = [error_line(i, "c", "m", True) for i in range(2)]
        folders += [evaluation_run(tmp_path / name, lines=lines), evaluation_run(tmp_path / f"{name}-e", lines=other)]
    assert [compare(*folders[i : i + 2]).lines[0].found.losses for i in (0, 2)] == [2, 0]
    assert [len(list(compare(*folders[i : i + 2]).flips())) for i in (0, 2)] == [2, 0]


def test_a_row_is_found_by_its_key_and_nothing_else(tmp_path):
    lines = [result_line(i, "a", f"text {i}") for i in range(5)]
    lines += [{**result_line(0, "a", "again"), "sample": 1}, {**result_line(3, "a", "twice")}]
    index = RowIndex(FinishedRun(generation_run(tmp_path / "run", lines)))
    assert len(index) == 7
    assert [index.find(key).output for key in ("0:q0", "0:q4", "1:q0", "0:q3")] == [
        "text 0", "text 4", "again", "text 3",
    ]  # fmt: skip
    assert index.find("0:q5") is None
    assert index.find("") is None
    assert RowIndex(FinishedRun(generation_run(tmp_path / "none", []))).find("0:q0") is None


def test_generation_runs_differ_in_outputs(tmp_path):
    lines = [result_line(i, "a", f"text {i}") for i in range(4)]
    other = [result_line(0, "a", "text 0"), result_line(1, "a", "else"), error_line(2, "c", "m", False)]
    comparison = compare(generation_run(tmp_path / "a", lines), generation_run(tmp_path / "b", other))
    assert comparison.lines == []
    assert comparison.flips_title == "Results with different outputs: 2"
    assert [(a.output, b.output) for a, b in comparison.flips()] == [("text 1", "else"), ("text 2", None)]


def test_other_data_is_warned_about(tmp_path, runs):
    path = runs[1] / "scores.json"
    scores = json.loads(path.read_text())
    path.write_text(json.dumps({**scores, "hashes": {"data": "0" * 64}}))
    assert compare(*runs).warnings == ["The input data of the two runs differ (by hash)."]
    inputs = [{"path": "other.jsonl", "sha256": "b" * 64}]
    generations = generation_run(tmp_path / "c"), generation_run(tmp_path / "d", input=inputs)
    assert compare(*generations).warnings == ["The input files of the two runs differ (by sha256)."]


def test_evaluations_that_cannot_be_compared_are_refused(tmp_path, runs, capsys):
    lines = [{**judged_line(i, "x", "y", "z", True), "id": f"other {i}"} for i in range(9)]
    other = evaluation_run(tmp_path / "c", lines=lines)
    assert main(["report", str(runs[0]), "--compare", str(other)]) == 2
    assert "have no row id in common" in capsys.readouterr().err


def test_the_page_has_both_sides(runs, tmp_path):
    page = tmp_path / "page.html"
    assert main(["report", str(runs[0]), "--compare", str(runs[1]), "-o", str(page)]) == 0
    text = page.read_text("utf-8")
    assert "<title>arithmetic (a) against arithmetic (b): report</title>" in text
    sides = re.findall(r'<div class="side (\w+)">\s*<h5>(\w)', text)
    assert sides == [("wrong", "A"), ("right", "B"), ("right", "A"), ("wrong", "B"), ("right", "A"), ("wrong", "B")]
    pair = text[text.index('id="pair-5"') : text.index('id="pair-7"')]
    assert "The sum is 10." in pair
    assert "The sum is 11." in pair
    assert "-0.1111" in text


def test_hostile_text_in_a_pair_is_text(tmp_path):
    folders = []
    for name, right in (("a", False), ("b", True)):
        line = {**judged_line(0, HOSTILE, HOSTILE, HOSTILE, right, prompt=HOSTILE), "id": HOSTILE}
        folders.append(str(evaluation_run(tmp_path / name, lines=[line], num=1, wrong=(), job={"name": HOSTILE})))
    page = tmp_path / "page.html"
    assert main(["report", folders[0], "--compare", folders[1], "-o", str(page)]) == 0
    text = page.read_text("utf-8")
    assert text.count("<script") == text.count("</script") == 1
    assert "<img" not in text
    assert not re.search("[\0\x1b\u202e]", text)


def test_the_other_run_must_be_one_too(runs, tmp_path, capsys):
    assert main(["report", str(runs[0]), "--compare", str(tmp_path / "none")]) == 2
    assert "none is no directory: give the output directory of a run" in capsys.readouterr().err
    assert main(["report", str(runs[0]), "--compare", str(runs[1]), "-o", str(runs[1] / "scores.json")]) == 2
    assert "is a file of the run" in capsys.readouterr().err
