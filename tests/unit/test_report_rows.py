"""Rows of every shape on the report page: choices, samples, batches, edited and very long ones."""

import pytest
from report_page import Page, page_maker
from report_runs import (
    evaluation_run,
    generation_run,
    judged_line,
    result_line,
    write_run,
)

from jobs.cli import main
from jobs.report.page import write_report
from jobs.report.rows import RowReader


@pytest.fixture
def page_of(tmp_path):
    return page_maker(tmp_path)


def test_choices_are_listed_with_what_was_chosen_and_what_was_right(tmp_path, page_of):
    choices = [{"text": " red", "logprob": -1.25, "num_tokens": 1, "is_greedy": True},
               {"text": " blue", "logprob": -2.5, "num_tokens": 2, "is_greedy": False}]  # fmt: skip
    line = judged_line(0, " red", 1, 0, False, choices=choices)
    page = page_of(evaluation_run(tmp_path / "run", lines=[line], num=1, wrong=(0,)))
    assert {"red-1.251yeschosen", "blue-2.52 target"} <= set(page.texts("tr"))


@pytest.mark.parametrize(
    ("target", "shown"), [(1, "1: blue"), ("B", "B: blue"), ("blue", "blue"), ([0, "B"], '[0, "B"]: red; blue')]
)
def test_a_choice_that_is_named_by_index_or_letter_is_shown_with_its_text(target, shown):
    choices = [{"text": "red", "logprob": -1.25, "num_tokens": 1, "is_greedy": True},
               {"text": "blue", "logprob": -2.5, "num_tokens": 2, "is_greedy": False}]  # fmt: skip
    (row,) = RowReader().read(judged_line(0, "red", target, 0, False, choices=choices), 0)
    assert (row.target, row.extracted) == (shown, "0: red")
    assert [choice.is_target for choice in row.choices] == [isinstance(target, list), True]


def test_several_samples_of_a_row_have_names_of_their_own(tmp_path, page_of):
    lines = [{**result_line(0, "a", f"answer {i}"), "sample": i} for i in range(3)]
    page = page_of(generation_run(tmp_path / "run", lines))
    assert [e["attrs"]["id"] for e in page.all("tr", class_="detail")] == ["row-0", "row-0-1", "row-0-2"]


def test_lines_of_an_openai_batch_are_read(tmp_path, page_of):
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    message = {"role": "assistant", "content": "Hi."}
    bodies = [
        {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage},
        {"choices": [{"index": 0, "text": " Ho.", "finish_reason": "length"}], "usage": usage},
        {"error": {"code": "no_prompt", "message": "body.messages is missing"}},
    ]
    lines = [
        {"id": f"b{i}", "custom_id": f"call {i}", "response": {"status_code": 200, "body": body}, "error": None}
        for i, body in enumerate(bodies)
    ]
    lines.append({"id": "b3", "custom_id": None, "response": None, "error": {"code": "invalid_row", "message": "no"}})
    page = page_of(write_run(tmp_path / "run", lines))
    assert page.texts("bdi", class_="dim id") == ["call 0", "call 1", "call 2", "b3"]
    assert page.texts("td", class_="output") == ["Hi.", "Ho.", "error: no_prompt", "error: invalid_row"]
    assert page.texts("td", class_="ended") == ["stop", "length", "error", "error"]


def test_the_prompt_of_a_job_with_a_template_is_rendered():
    reader = RowReader("Capital of {{ country }}?")
    (row,) = reader.read({"id": "a", "index": 0, "row": {"country": "Peru"}}, 0)
    assert row.prompt == "Capital of Peru?"
    (row,) = reader.read({"id": "a", "index": 0, "row": {"land": "Peru"}}, 0)
    assert row.prompt is None
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital?"}]
    (row,) = RowReader().read({"id": "a", "index": 0, "row": {"messages": messages}}, 0)
    assert row.prompt == "system: Be brief.\n\nuser: Capital?"


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"id": None, "index": "x", "sample": -1, "text": 5, "usage": [], "error": "no", "row": [], "scores": "high"},
        {"id": {"a": 1}, "index": True, "choices": {"a": 1}, "scores": {"f1": None, "bleu": "x"}, "group": [1]},
        {"custom_id": 5, "response": []},
        {"custom_id": "a", "response": {"body": {"choices": [5, {"message": 3}], "usage": {"prompt_tokens": "1"}}}},
        {"id": "a", "text": "b", "row": {"messages": [5, {"role": 3}]}, "error": {}},
        {"id": "a", "choices": [{"text": None}, {"logprob": "x"}, 7], "scores": {"exact_match": float("nan")}},
    ],
)  # fmt: skip
def test_lines_that_were_edited_are_shown_as_far_as_they_can(tmp_path, page_of, line):
    page = page_of(evaluation_run(tmp_path / "run", lines=[line, result_line(9, "a", "whole")], num=2))
    assert "whole" in page.texts("td", class_="output")


def test_only_the_first_rows_are_shown_and_the_rest_is_counted(tmp_path, capsys):
    lines = [result_line(i, f"prompt {i}", f"output {i}") for i in range(30)]
    run = generation_run(tmp_path / "run", lines)
    assert main(["report", str(run), "--rows", "10"]) == 0
    page = Page(run / "report.html")
    assert len(page.all("tr", class_="row")) == 10
    assert "The first 10 of 30 results; 20 are left out. All of them: nanovllm report DIR --rows all." in page.source
    assert "30 results, 81" not in page.source
    assert main(["report", str(run), "--rows", "all"]) == 0
    page = Page(run / "report.html")
    assert len(page.all("tr", class_="row")) == 30
    assert "All 30 results, in the order of the input." in page.source
    assert main(["report", str(run), "--rows", "0"]) == 2
    assert "expected an integer of at least 1, found '0'" in capsys.readouterr().err


def test_a_very_long_text_is_cut_on_the_page(tmp_path, page_of):
    page = page_of(generation_run(tmp_path / "run", [result_line(0, "a", "x" * 1_000_000)]))
    assert len(page.source) < 100_000
    assert "[… 980,000 more characters: see results.jsonl]" in page.source


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    import tracemalloc

    def peak(num_rows):
        lines = [result_line(i, f"prompt {i}", "output " * 100) for i in range(num_rows)]
        run = generation_run(tmp_path / f"run-{num_rows}", lines)
        del lines
        write_report(run, num_rows=None)  # what is made once and kept
        tracemalloc.start()
        write_report(run, num_rows=None)
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    assert peak(2000) < peak(100) + 1_000_000  # the lines alone are 2 MB, the page 5 MB
