"""Starting a command again: what is kept, what is done again, and what is said about it."""

import gzip
import io
import json
import os
import random
import signal

import pytest
from fake_llm import FakeLLM

from jobs.job_file import load_job
from jobs.run import run_job
from nanovllm import ConfigError, UsageError

ROWS = [{"id": f"i{n}", "prompt": f"row-{n:02d}", "note": n} for n in range(12)]


class Bench:
    """A job that can be changed and run again, with fake models that remember what they did."""

    def __init__(self, folder):
        self.folder = folder
        self.out = folder / "run"
        self.said = ""

    def run(self, rows=ROWS, text="sampling: {temperature: 0.5}\n", llm=None, output="run", name="in.jsonl"):
        """Gives the exit code and the ids that were generated."""
        (self.folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        (self.folder / "job.yaml").write_text(
            f"model: fake\ninput: {name}\noutput: {output}\nprogress: none\n{text}", "utf-8"
        )
        llm = llm or FakeLLM()
        stream = io.StringIO()
        code = run_job(load_job(self.folder / "job.yaml"), lambda job: llm, stream)
        self.said = stream.getvalue()
        return code, [seen[0] for seen in llm.seen]

    def results(self, output="run"):
        return (self.folder / output / "results.jsonl").read_bytes()

    def manifest(self):
        return json.loads((self.out / "manifest.json").read_text("utf-8"))

    def log(self):
        return (self.out / "run.log").read_text("utf-8")

    def interrupted(self, after, **options):
        """Run and be stopped when so many rows are done."""

        def stop(number):
            if number == after:
                os.kill(os.getpid(), signal.SIGTERM)

        assert self.run(llm=FakeLLM(window=2, on_output=stop), **options)[0] == 143


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def whole(bench):
    """The results of an unbroken run, made in a folder of their own."""
    assert bench.run(output="whole")[0] == 0
    return bench.results("whole")


def test_an_interrupted_run_continues_and_gives_the_same_bytes(bench, whole):
    bench.interrupted(after=5)
    code, done = bench.run()
    assert (code, len(done)) == (0, 7)
    assert bench.results() == whole
    manifest = bench.manifest()
    assert manifest["counts"] == {"rows": 12, "ok": 12, "errors": 0, "skipped": 0, "lines": 12}
    assert manifest["tokens"] == {"prompt": 12 * 7, "completion": 12 * 3, "cached": 12 * 2}
    assert (manifest["resumes"], manifest["resumed"]["kept"], manifest["resumed"]["new"]) == (1, 5, 7)
    assert "resumed: 5 rows kept, 7 new" in bench.said


def test_a_row_counts_what_it_shares_with_the_row_before_it(bench):
    assert bench.run()[0] == 0
    before = [json.loads(line)["usage"]["cached_tokens"] for line in bench.results().splitlines()]
    assert before == [0] + [4] * 11  # BOS and "row" are a block of the fake model
    changed = [{**row, "prompt": "other"} if row["id"] == "i3" else row for row in ROWS]
    code, done = bench.run(rows=changed)
    assert (code, done) == (0, ["i3"])
    now = [json.loads(line)["usage"]["cached_tokens"] for line in bench.results().splitlines()]
    assert now == [0, 4, 4, 0, 0] + [4] * 7
    assert bench.run(rows=changed, output="fresh")[0] == 0
    assert bench.results() == bench.results("fresh")


def test_asking_for_ids_later_does_the_rows_again(bench):
    bench.run()
    code, done = bench.run(text="sampling: {temperature: 0.5}\nreturn_token_ids: true\n")
    assert (code, len(done)) == (0, 12)
    assert bench.manifest()["resumed"]["changed"] == {"sampling": 12}
    assert all(json.loads(line)["token_ids"] for line in bench.results().splitlines())
    assert bench.run(text="sampling: {temperature: 0.5}\nreturn_token_ids: true\n") == (0, [])


def test_a_torn_journal_is_mended_and_the_log_says_so(bench, whole):
    bench.interrupted(after=5)
    journal = bench.out / "journal.jsonl"
    data = journal.read_bytes()
    start = data[:-1].rindex(b'\n{"index"') + 1
    for size in [start + 1, start + 40, data.rindex(b"\n", 0, -1) + 1, len(data) - 30, len(data) - 1]:
        for path in bench.out.iterdir():
            path.unlink()
        journal.write_bytes(data[:size])  # no manifest either
        code, done = bench.run()
        assert (code, len(done)) == (0, 8)
        assert bench.results() == whole
        assert f"a torn tail of {size - start} bytes is cut off; 4 whole rows are left" in bench.log()


def test_a_finished_run_keeps_what_did_not_change(bench, whole):
    bench.run()
    rows = [dict(row) for row in ROWS]
    rows[3]["prompt"] = "other"
    code, done = bench.run(rows)
    assert (code, done) == (0, ["i3"])
    assert "row 3 (i3) is done again: changed prompt" in bench.log()
    assert bench.manifest()["resumed"] == {"kept": 11, "changed": {"prompt": 1}, "new": 0, "dropped": 0}
    bench.run(rows, output="fresh")
    assert bench.results() == bench.results("fresh")


def test_rows_that_move_or_change_other_columns_are_not_generated_again(bench):
    bench.run()
    rows = [{"id": "first", "prompt": "new one", "note": None}, *reversed(ROWS[:8])]
    rows[2] = {**rows[2], "note": "changed"}
    code, done = bench.run(rows)
    assert (code, done) == (0, ["first"])
    assert bench.manifest()["resumed"] == {"kept": 8, "changed": {}, "new": 1, "dropped": 4}
    bench.run(rows, output="fresh")
    assert bench.results() == bench.results("fresh")


@pytest.mark.parametrize(
    ("text", "num_done"),
    [
        ("sampling: {temperature: 0.5, top_p: 0.9}\n", 12),
        ("sampling: {temperature: 0.5}\nengine: {seed: 3}\n", 12),
        ("sampling: {temperature: 0.5}\nengine: {gemm: blas}\n", 12),
        ("sampling: {temperature: 0.5}\nengine: {threads: 2, max_num_seqs: 3}\nname: x\n", 0),
        ("# a remark\nsampling: {temperature: 0.5}\nlimits: {max_errors: 4}\n", 0),
    ],
)
def test_only_settings_that_change_completions_count(bench, text, num_done):
    bench.run()
    assert len(bench.run(text=text)[1]) == num_done


def test_a_seed_of_a_greedy_job_changes_nothing(bench):
    bench.run(text="sampling: {temperature: 0}\n")
    assert bench.run(text="sampling: {temperature: 0}\nengine: {seed: 3}\n")[1] == []


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("model", {"path": "fake", "identity": "8" * 64}, "model"),
        ("kernels", "avx2", "numerics"),
        ("engine", {"dtype": "float32", "kv_cache_dtype": "int8"}, "numerics"),
    ],
)
def test_another_model_or_machine_does_all_of_it_again_and_says_why(bench, part, value, reason):
    bench.run()

    class Other(FakeLLM):
        def facts(self):
            return {**super().facts(), part: value}

    code, done = bench.run(llm=Other())
    assert (code, len(done)) == (0, 12)
    assert f"row 0 (i0) is done again: changed {reason}" in bench.log()
    assert bench.manifest()["resumed"]["changed"] == {reason: 12}


def test_a_smaller_limit_does_not_drop_finished_rows(bench, whole):
    bench.run()
    with pytest.raises(ConfigError, match=r"holds the results of 12 rows, and the limit is 4: choose another output"):
        bench.run(text="sampling: {temperature: 0.5}\nlimit: 4\n")
    assert bench.results() == whole
    assert bench.run(text="sampling: {temperature: 0.5}\nlimit: 4\nrestart: true\n")[0] == 0
    assert len(bench.results().splitlines()) == 4
    # of a run that was broken off, the rows are met before the end shows that some are left over
    bench.interrupted(after=5)
    with pytest.raises(UsageError, match=r"only 3 rows are read \(limit\), and \d rows that an earlier process finish"):
        bench.run(text="sampling: {temperature: 0.5}\nlimit: 3\n")
    assert bench.run()[0] == 0
    assert bench.results() == whole


def test_a_limit_that_stays_drops_what_vanished(bench):
    text = "sampling: {temperature: 0.5}\nlimit: 12\n"
    bench.run(text=text)
    code, done = bench.run(rows=[*ROWS[:11], {"id": "other", "prompt": "another"}], text=text)
    assert (code, done) == (0, ["other"])
    assert bench.manifest()["resumed"]["dropped"] == 1


def test_an_empty_input_does_not_drop_finished_rows(bench, whole):
    bench.run()
    with pytest.raises(UsageError, match="the input has no rows, and 12 rows that an earlier process finished"):
        bench.run(rows=[])
    assert bench.manifest()["exit_code"] == 2
    code, done = bench.run()
    assert (code, done, bench.results()) == (0, [], whole)
    assert bench.run(rows=[], text="restart: true\n")[0] == 0


def test_an_input_that_breaks_off_does_not_drop_finished_rows(bench):
    rows = [{**row, "note": random.Random(row["id"]).randbytes(20_000).hex()} for row in ROWS]
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0)

    def run(content):
        (bench.folder / "in.jsonl.gz").write_bytes(content)
        return bench.run(text="sampling: {temperature: 0.5}\n", name="in.jsonl.gz")

    assert run(packed)[0] == 0
    whole = bench.results()
    with pytest.raises(UsageError, match=r"line \d+ and what follows cannot be read: .*, and \d+ rows that an earlier"):
        run(packed[:-100_000])
    code, done = run(packed)
    assert (code, done, bench.results()) == (0, [], whole)


def test_an_id_given_twice_stays_an_error_row_over_a_resume(bench):
    rows = [{"id": i, "prompt": f"p{n}"} for n, i in enumerate(["a", "b", "a", 7, "7", "", None, "5"])]
    limits = "limits: {max_errors: 3}\n"
    bench.run(rows, limits, output="whole")
    bench.interrupted(after=3, rows=rows, text=limits)
    assert bench.run(rows, limits)[0] == 0
    assert bench.results() == bench.results("whole")
    errors = [json.loads(line)["error"] for line in bench.results().splitlines()]
    assert [n for n, error in enumerate(errors) if error] == [2, 4, 7]


def test_error_rows_are_judged_again(bench):
    bench.run(text="limits: {max_errors: 12}\n", llm=FakeLLM(max_model_len=5))
    assert bench.manifest()["counts"]["errors"] == 12
    assert len(bench.run(text="limits: {max_errors: 12}\n")[1]) == 12
    assert bench.manifest()["counts"]["errors"] == 0


def test_limits_stop_early(bench):
    rows = [{"id": str(n), "prompt": 1 if n % 3 == 0 else "good"} for n in range(30)]
    llm = FakeLLM(window=1)
    code, _ = bench.run(rows, "limits: {max_errors: 2, stop_early: true}\n", llm)
    assert code == 3
    assert bench.manifest()["status"] == "too_many_errors"
    assert bench.manifest()["counts"]["errors"] == 3
    assert len(llm.seen) == 4
    assert not (bench.out / "results.jsonl").exists()
    # a tenth of 30 rows are 3 error rows: the fourth is one too many, and not before
    bench.run(rows, "limits: {max_error_rate: 0.1, stop_early: true}\n", FakeLLM(window=1))
    assert bench.manifest()["counts"]["errors"] == 4


def test_a_deadline_ends_with_5_and_the_next_start_continues(bench, whole, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("jobs.run.time.monotonic", lambda: now[0])
    monkeypatch.setattr("jobs.lifecycle.signal.setitimer", lambda *arguments: None)

    def pass_time(number):
        now[0] += 10

    text = "sampling: {temperature: 0.5}\nlimits: {deadline: 45s}\n"
    code, done = bench.run(text=text, llm=FakeLLM(window=1, on_output=pass_time))
    # rows take 10 s: after the fourth, at 40 s, another would end at 50 s
    assert (code, done) == (5, ["i0", "i1", "i2", "i3"])
    assert bench.manifest()["status"] == "deadline"
    assert "4 rows are done and kept in" in bench.said
    code, done = bench.run(text=text)
    assert (code, len(done)) == (0, 8)
    assert bench.results() == whole


def test_the_alarm_ends_rows_that_take_too_long(bench):
    def ring(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGALRM)

    code, done = bench.run(text="limits: {deadline: 1h}\n", llm=FakeLLM(window=2, on_output=ring))
    assert (code, len(done)) == (5, 3)


def test_another_shard_in_the_same_place_is_refused(bench):
    job = "shard: 0/2\n"
    assert bench.run(text=job)[0] == 0
    assert not bench.out.exists()
    kept = len((bench.folder / "run-0-of-2" / "results.jsonl").read_bytes().splitlines())
    assert 0 < kept < 12
