"""A run from job file to results, with a fake model: order, counts, manifest, exit codes, signals."""

import dataclasses
import hashlib
import io
import json
import logging
import os
import signal

import pytest
from fake_llm import FakeLLM

from jobs.job_file import load_job
from jobs.journal import Journal
from jobs.run import run_job
from nanovllm import ConfigError, MemoryBudgetError


class Workshop:
    """A folder with a job in it."""

    def __init__(self, folder):
        self.folder = folder
        self.run_folder = folder / "run"
        self.stderr = ""

    def job(self, rows, text=""):
        if not isinstance(rows, str):
            rows = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / "in.jsonl").write_text(rows, "utf-8")
        (self.folder / "job.yaml").write_text(f"model: fake\ninput: in.jsonl\noutput: run\nprogress: none\n{text}")
        return load_job(self.folder / "job.yaml")

    def run(self, job, llm=None):
        stream = io.StringIO()
        try:
            return run_job(job, lambda job: llm or FakeLLM(), stream)
        finally:
            self.stderr = stream.getvalue()

    def lines(self, name="results.jsonl"):
        return [json.loads(line) for line in (self.run_folder / name).read_text("utf-8").splitlines()]

    def journaled(self):
        """The result lines in the journal; every row here has one, behind its head."""
        return self.lines("journal.jsonl")[2::2]

    def manifest(self):
        return json.loads((self.run_folder / "manifest.json").read_text("utf-8"))

    def files(self):
        return sorted(path.name for path in self.run_folder.iterdir())


@pytest.fixture
def shop(tmp_path):
    return Workshop(tmp_path)


def test_results_come_in_input_order_one_line_for_each_completion(shop):
    rows = [{"prompt": f"row-{n:02d}", "id": f"i{n}", "kept": [n, None]} for n in range(11)]
    rows[3]["sampling"] = {"n": 2, "seed": 5}
    assert shop.run(shop.job(rows, "sampling: {temperature: 0.5}\n")) == 0
    lines = shop.lines()
    assert [(line["id"], line["index"], line["sample"]) for line in lines] == [
        *[(f"i{n}", n, 0) for n in range(4)],
        ("i3", 3, 1),
        *[(f"i{n}", n, 0) for n in range(4, 11)],
    ]
    assert lines[0] == {
        "id": "i0",
        "index": 0,
        "sample": 0,
        "text": "00-",
        "finish_reason": "length",
        "stop_reason": None,
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "cached_tokens": 0},
        "error": None,
        "seed": int(hashlib.sha256(b"i0").hexdigest()[:4], 16),
        "row": {"prompt": "row-00", "id": "i0", "kept": [0, None]},
    }
    assert shop.files() == ["manifest.json", "results.jsonl", "rows.jsonl", "run.log", "status.json"]


def test_ids_come_where_the_job_asks_for_them(shop):
    rows = [{"prompt": "abcd"}, {"prompt": "wxyz", "sampling": {"n": 2, "temperature": 1}}, {"prompt": 5}]
    assert shop.run(shop.job(rows, "return_token_ids: true\n")) == 3
    first, second, third, refused = shop.lines()
    assert (first["prompt_token_ids"], first["token_ids"]) == ([1, 97, 98, 99, 100], [100, 99, 98])
    assert (second["prompt_token_ids"], second["token_ids"]) == ([1, 119, 120, 121, 122], [122, 121, 120])
    assert ("prompt_token_ids" in third, third["token_ids"]) == (False, [122, 121, 120])  # a prompt's ids come once
    assert not {"prompt_token_ids", "token_ids"} & set(refused)
    assert not {"prompt_token_ids", "token_ids", "logprobs"} & set(shop_lines_without(shop, rows[:1])[0])


def shop_lines_without(shop, rows):
    shop.run(shop.job(rows))
    return shop.lines()


def test_what_the_engine_refuses_has_its_place_too(shop):
    assert shop.run(shop.job([{"prompt": "ok"}, {"prompt": "x" * 1000}])) == 3
    message = f"{shop.folder / 'in.jsonl'}, line 2: the prompt has 1001 tokens and max_model_len is 1000"
    assert shop.lines()[1]["error"] == {"code": "prompt_too_long", "message": message, "retryable": False}


def test_greedy_rows_have_no_seed(shop):
    shop.run(shop.job([{"prompt": "abc"}], "sampling: {temperature: 0}\n"))
    assert "seed" not in shop.lines()[0]


MIXED = """{"prompt": "good"}

{"prompt":
{"prompt": "xx", "a": NaN}
{"prompt": "caf\\ud83d"}
{"note": "\\ud83d\u2028", "prompt": "ok"}
"""


def test_bad_rows_are_error_rows_and_exit_3(shop):
    assert shop.run(shop.job(MIXED)) == 3
    lines = shop.lines()
    assert [(line["id"], line["finish_reason"]) for line in lines] == [
        ("0", "length"),
        ("1", "error"),
        ("2", "error"),
        ("3", "error"),
        ("4", "length"),
    ]
    source = shop.folder / "in.jsonl"
    assert lines[1]["error"] == {
        "code": "invalid_row",
        "message": f"{source}, line 3 is not JSON: Expecting value (column 11)",
        "retryable": False,
    }
    assert (lines[1]["row"], lines[1]["usage"], lines[1]["text"]) == (None, None, None)
    assert lines[2]["error"]["message"] == f"{source}, line 4 holds NaN under the key 'a', which JSON cannot hold"
    assert lines[3]["error"]["code"] == "invalid_text"
    data = (shop.run_folder / "results.jsonl").read_bytes()
    assert b'"note": "\\ud83d\\u2028"' in data
    assert b": NaN" not in data
    manifest = shop.manifest()
    assert manifest["counts"] == {"rows": 5, "ok": 2, "errors": 3, "skipped": 0, "lines": 5}
    assert manifest["errors_by_code"] == {"invalid_row": 2, "invalid_text": 1}
    assert (manifest["status"], manifest["exit_code"]) == ("finished", 3)
    assert "5 rows: 2 ok, 3 errors, 0 skipped" in shop.stderr
    assert "errors:  invalid_row 2, invalid_text 1" in shop.stderr
    assert "more error rows than allowed: 3, and the limits are max_errors 0 and max_error_rate 0" in shop.stderr
    assert "row 1 (" in (shop.run_folder / "run.log").read_text()


@pytest.mark.parametrize(
    ("limits", "code"), [("{max_errors: 3}", 0), ("{max_errors: 2}", 3), ("{max_error_rate: 0.6}", 0)]
)
def test_limits_decide_the_exit_code(shop, limits, code):
    assert shop.run(shop.job(MIXED, f"limits: {limits}\n")) == code


def test_wrong_row_settings_are_error_rows(shop):
    rows = [{"prompt": "a", "sampling": {"max_token": 1}}, {"prompt": "b"}, {"prompt": "c", "id": "1"}]
    assert shop.run(shop.job(rows)) == 3
    errors = [line["error"] and line["error"]["code"] for line in shop.lines()]
    assert errors == ["invalid_sampling", None, "duplicate_id"]


LONG = [{"prompt": "ab"}, {"prompt": "0123456789"}, {"prompt": "cd"}]


@pytest.mark.parametrize(
    ("policy", "code", "reason", "status"),
    [("error", 3, "error", (2, 1, 0)), ("skip", 0, "skipped", (2, 0, 1))],
)
def test_an_overlong_row_is_refused_or_skipped(shop, policy, code, reason, status):
    assert shop.run(shop.job(LONG, f"on_overlong: {policy}\n"), FakeLLM(max_model_len=8)) == code
    assert [line["finish_reason"] for line in shop.lines()] == ["length", reason, "length"]
    assert shop.lines()[1]["error"]["code"] == "prompt_too_long"
    assert "has 11 tokens and max_model_len is 8" in shop.lines()[1]["error"]["message"]
    counts = shop.manifest()["counts"]
    assert (counts["ok"], counts["errors"], counts["skipped"]) == status


@pytest.mark.parametrize(
    ("policy", "seen"), [("truncate_left", "56789"), ("truncate_right", "01234"), ("truncate_middle", "01289")]
)
def test_an_overlong_row_is_cut_with_a_trace(shop, policy, seen):
    llm = FakeLLM(max_model_len=8)
    assert shop.run(shop.job(LONG, f"on_overlong: {policy}\nsampling: {{max_tokens: 2}}\n"), llm) == 0
    assert sorted(prompt for _, prompt, _ in llm.seen) == sorted(["ab", "cd", seen])
    assert [line.get("num_cut_tokens") for line in shop.lines()] == [None, 5, None]


def test_a_chat_is_never_cut(shop):
    rows = [{"messages": [{"role": "user", "content": "0123456789"}]}]
    assert shop.run(shop.job(rows, "on_overlong: truncate_left\n"), FakeLLM(max_model_len=8)) == 3
    assert shop.lines()[0]["error"]["code"] == "prompt_too_long"


def test_rows_are_read_as_the_engine_takes_them(shop):
    llm = FakeLLM(window=3)
    assert shop.run(shop.job([{"prompt": str(n)} for n in range(100)]), llm) == 0
    assert llm.most_held == 3


def test_limit_reads_the_first_rows_and_hashes_the_whole_file(shop):
    job = shop.job([{"prompt": str(n)} for n in range(9)], "limit: 2\n")
    assert shop.run(job) == 0
    data = (shop.folder / "in.jsonl").read_bytes()
    assert [line["index"] for line in shop.lines()] == [0, 1]
    assert shop.manifest()["input"] == [
        {"path": str(shop.folder / "in.jsonl"), "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    ]


def test_manifest_tells_what_was_run(shop):
    job = shop.job([{"prompt": "abc"}], "name: n\nsampling: {temperature: 0}\nengine: {seed: 3}\n")
    llm = FakeLLM(model_defaults={"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1})
    assert shop.run(job, llm) == 0
    manifest = shop.manifest()
    assert (manifest["schema_version"], manifest["kind"], manifest["resumes"]) == (1, "nanovllm-run", 0)
    assert manifest["job"]["name"] == "n"
    assert manifest["job"]["sampling"] == {"temperature": 0}
    assert manifest["model"] == {"name": "fake", "path": "fake", "identity": "7" * 64}
    assert manifest["tokenizer"]["sha256"] == "5" * 64
    assert manifest["seeds"] == {"engine": 3, "sampling": None}
    assert manifest["tokens"] == {"prompt": 4, "completion": 3, "cached": 2}
    assert manifest["sampling"]["temperature"] == {"value": 0.0, "origin": "job"}
    assert manifest["sampling"]["top_k"] == {"value": 20, "origin": "model"}
    assert manifest["sampling"]["repetition_penalty"] == {"value": 1.1, "origin": "model"}
    assert manifest["sampling"]["min_p"] == {"value": 0.0, "origin": "built-in"}
    assert llm.seen[0][2].repetition_penalty == 1.1
    assert manifest["started"] <= manifest["ended"]


def test_restart_forgets_a_finished_run(shop):
    assert shop.run(shop.job([{"prompt": "abc"}])) == 0
    llm = FakeLLM()
    assert shop.run(shop.job([{"prompt": "abc"}], "restart: true\n"), llm) == 0
    assert len(llm.seen) == 1
    assert shop.manifest()["resumes"] == 0


@pytest.mark.parametrize("name", ["results.jsonl", "manifest.json", "rows.jsonl", "journal.jsonl"])
def test_files_of_others_are_never_touched(shop, name):
    shop.run_folder.mkdir()
    (shop.run_folder / name).write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=f"{name} was not written by a run: choose another output"):
        shop.run(shop.job([{"prompt": "abc"}], "restart: true\n"))
    assert (shop.run_folder / name).read_text() == '{"mine": 1}'


def test_results_cannot_be_their_own_input(shop):
    shop.run(shop.job([{"prompt": "abc"}]))
    text = "model: fake\ninput: run/results.jsonl\noutput: run\nrestart: true\n"
    (shop.folder / "job.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"results.jsonl lies in the output directory"):
        shop.run(load_job(shop.folder / "job.yaml"))


def test_an_output_that_cannot_be_a_directory(shop):
    shop.run_folder.write_text("")
    with pytest.raises(ConfigError, match="run cannot be written: File exists"):
        shop.run(shop.job([{"prompt": "abc"}]))


def test_a_model_that_cannot_be_loaded_leaves_a_manifest(shop):
    def fail(job):
        raise MemoryBudgetError("too little memory: lower max_model_len")

    with pytest.raises(MemoryBudgetError):
        run_job(shop.job([{"prompt": "abc"}]), fail, io.StringIO())
    manifest = shop.manifest()
    assert (manifest["status"], manifest["exit_code"]) == ("failed", 2)
    assert manifest["error"] == "too little memory: lower max_model_len"
    assert manifest["counts"]["rows"] == 0


def test_a_failing_restart_keeps_the_finished_run(shop):
    shop.run(shop.job([{"prompt": "abc"}]))
    kept = [(shop.run_folder / name).read_bytes() for name in ("results.jsonl", "manifest.json")]

    def fail(job):
        raise MemoryBudgetError("too little memory")

    with pytest.raises(MemoryBudgetError):
        run_job(shop.job([{"prompt": "abc"}], "restart: true\n"), fail, io.StringIO())
    assert [(shop.run_folder / name).read_bytes() for name in ("results.jsonl", "manifest.json")] == kept


def test_an_internal_failure_keeps_rows_and_traceback(shop):
    def fail(number):
        if number == 3:
            raise ZeroDivisionError("engine\ntrouble")

    rows = [{"prompt": f"abc{n}"} for n in range(9)]
    assert shop.run(shop.job(rows), FakeLLM(window=2, on_output=fail)) == 1
    assert shop.files() == ["journal.jsonl", "manifest.json", "run.log", "status.json"]
    assert len(shop.journaled()) == 3
    assert "Traceback" in (shop.run_folder / "run.log").read_text()
    said = shop.stderr.splitlines()[-1]
    assert said.startswith("nanovllm run: internal failure (ZeroDivisionError: engine); the traceback is in ")
    assert (shop.manifest()["status"], shop.manifest()["counts"]["ok"]) == ("failed", 3)


@pytest.mark.parametrize(("signum", "code", "name"), [(signal.SIGINT, 130, "SIGINT"), (signal.SIGTERM, 143, "SIGTERM")])
def test_a_signal_ends_with_what_is_done(shop, signum, code, name):
    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]

    def stop(number):
        if number == 4:
            os.kill(os.getpid(), signum)

    job = shop.job([{"prompt": f"abc{n}"} for n in range(20)])
    assert shop.run(job, FakeLLM(window=2, on_output=stop)) == code
    assert len(shop.journaled()) == 4
    assert not (shop.run_folder / "results.jsonl").exists()
    assert (shop.manifest()["status"], shop.manifest()["exit_code"]) == ("interrupted", code)
    assert f"stopped by {name}: 4 rows are done and kept in" in shop.stderr
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers
    llm = FakeLLM()
    assert shop.run(job, llm) == 0
    assert len(shop.lines()) == 20
    assert len(llm.seen) == 16


def test_a_signal_never_cuts_a_result(shop, monkeypatch):
    append = Journal.append

    def signal_inside(self, index, key, values, lines):
        if index == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        append(self, index, key, values, lines)

    monkeypatch.setattr(Journal, "append", signal_inside)
    assert shop.run(shop.job([{"prompt": f"{n}"} for n in range(5)]), FakeLLM(window=1)) == 143
    assert [line["index"] for line in shop.journaled()] == [0, 1, 2]
    assert shop.manifest()["counts"]["rows"] == 3


def test_engine_warnings_are_shown_and_logged(shop):
    def warn(number):
        logging.getLogger("nanovllm.loader").warning("an odd tensor")

    shop.run(shop.job([{"prompt": "abc"}]), FakeLLM(on_output=warn))
    assert "nanovllm: warning: an odd tensor" in shop.stderr
    assert "an odd tensor" in (shop.run_folder / "run.log").read_text()
    assert logging.getLogger("nanovllm").handlers == []


def test_no_rows_is_an_empty_result(shop):
    assert shop.run(shop.job("\n\n")) == 0
    assert (shop.run_folder / "results.jsonl").read_bytes() == b""
    assert shop.manifest()["counts"]["rows"] == 0


@pytest.mark.parametrize(
    ("mode", "first"),
    [
        ("plain", "2/2 rows, "),
        (
            "json",
            '{"phase": "ended", "rows": 2, "total": 2, "errors": 0, "running": 1, "waiting": 2, "completion_tokens"',
        ),
        ("bar", "\r"),
    ],
)
def test_progress_modes(shop, mode, first):
    job = dataclasses.replace(shop.job([{"prompt": "a"}, {"prompt": "b"}]), progress=mode)
    assert shop.run(job) == 0
    assert first in shop.stderr
    assert "running 1, waiting 2" in shop.stderr or mode == "json"


def test_every_line_for_a_machine_is_json(shop):
    job = dataclasses.replace(shop.job([{"prompt": "a"}, {"prompt": "b"}]), progress="json")
    assert shop.run(job) == 0
    objects = [json.loads(line) for line in shop.stderr.splitlines()]
    assert [sorted(one) == ["message"] for one in objects] == [True, False, True]
    assert "2 rows" in objects[-1]["message"]
    assert shop.run(job) == 0  # a run whose results are kept says so in the same way
    assert all(json.loads(line) for line in shop.stderr.splitlines())
