"""The report page without a browser: numbers, escaping, refusals, size."""

import html.parser
import re

import pytest
from report_runs import (
    HOSTILE,
    SERIES,
    error_line,
    estimate,
    evaluation_run,
    generation_run,
    judged_line,
    result_line,
    write_run,
)

from jobs.cli import main
from jobs.report.page import write_report
from jobs.report.rows import RowReader

VOID = {"meta", "input", "br", "img", "hr", "link"}


class Page(html.parser.HTMLParser):
    """A page taken apart: elements with their attributes and texts; fails on tags that do not nest."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.source = path.read_bytes().decode("utf-8")
        self.elements, self._open = [], []
        self.feed(self.source)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": ""}
        assert len(dict(attrs)) == len(attrs), attrs
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append({"tag": tag, "attrs": dict(attrs), "text": ""})

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, tag, **attrs):
        attrs = {name.rstrip("_"): value for name, value in attrs.items()}
        return [e for e in self.elements if e["tag"] == tag and attrs.items() <= e["attrs"].items()]

    def texts(self, tag, **attrs):
        return [" ".join(e["text"].split()) for e in self.all(tag, **attrs)]

    def tiles(self):
        return dict(zip(self.texts("dt"), self.texts("dd"), strict=True))


@pytest.fixture
def page_of(tmp_path):
    def make(folder, **options):
        return Page(write_report(folder, output=tmp_path / "page.html", **options))

    return make


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


def test_choices_are_listed_with_what_was_chosen_and_what_was_right(tmp_path, page_of):
    choices = [{"text": " red", "logprob": -1.25, "num_tokens": 1, "is_greedy": True},
               {"text": " blue", "logprob": -2.5, "num_tokens": 2, "is_greedy": False}]  # fmt: skip
    line = judged_line(0, " red", 1, 0, False, choices=choices)
    page = page_of(evaluation_run(tmp_path / "run", lines=[line], num=1, wrong=(0,)))
    assert {"red-1.251yeschosen", "blue-2.52 target"} <= set(page.texts("tr"))


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


@pytest.mark.parametrize(
    "change, message",
    [
        ("folder", "run is no directory: give the output directory of a run"),
        ("manifest.json", "run is not the directory of a run: it has no manifest.json of one"),
        ("results.jsonl", "run is not finished (results.jsonl is missing): run its command again first"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, capsys, change, message):
    run = tmp_path / "run"
    if change != "folder":
        generation_run(run)
        (run / change).unlink()
    assert main(["report", str(run)]) == 2
    assert message in capsys.readouterr().err
    assert not (run / "report.html").exists()


def test_a_run_that_has_not_ended_is_refused(tmp_path, capsys):
    run = generation_run(tmp_path / "run", status="interrupted")
    assert main(["report", str(run)]) == 2
    assert "run is not finished (interrupted, 7 rows done): run its command again first" in capsys.readouterr().err


def test_a_damaged_line_is_named_and_an_older_report_stays(tmp_path, capsys):
    run = generation_run(tmp_path / "run")
    with (run / "results.jsonl").open("a") as file:
        file.write('{"id": "torn')
    (run / "report.html").write_text("older")
    assert main(["report", str(run)]) == 2
    assert "results.jsonl, line 8 is no JSON object: the file is damaged" in capsys.readouterr().err
    assert (run / "report.html").read_text() == "older"
    assert not list(run.glob("*.tmp"))


@pytest.mark.parametrize(
    "name, message",
    [
        ("results.jsonl", "is a file of the run"),
        ("manifest.json", "is a file of the run"),
        (".", "is a folder: name a file by -o"),
        ("none/page.html", "cannot be written: No such file or directory; choose another file by -o"),
    ],
)
def test_an_output_that_cannot_be_is_refused(tmp_path, capsys, name, message):
    run = generation_run(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert main(["report", str(run), "-o", str(run / name)]) == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


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
