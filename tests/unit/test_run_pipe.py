"""A run that reads a pipe: it works while it waits, and ends when it is told to, by a signal or by its deadline."""

import io
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from fake_llm import FakeLLM

from jobs.job_file import load_job
from jobs.run import run_job


class Silent(io.RawIOBase):
    """A pipe into which nobody writes; a signal comes meanwhile."""

    def __init__(self, signum=None):
        self._signum = signum

    def read1(self, size):
        if self._signum is not None:
            os.kill(os.getpid(), self._signum)
        time.sleep(60)
        raise AssertionError("nothing broke the read off")


@pytest.mark.parametrize(
    ("signum", "limits", "code", "said"),
    [
        (signal.SIGTERM, "", 143, "nanovllm run: stopped by SIGTERM: nothing was generated\n"),
        (signal.SIGINT, "", 130, "nanovllm run: stopped by SIGINT: nothing was generated\n"),
        (None, "limits: {deadline: 0.05}", 5, "the deadline is reached: nothing was generated (exit code 5)\n"),
    ],
)
def test_a_pipe_that_stays_empty_can_be_ended(tmp_path, signum, limits, code, said):
    (tmp_path / "job.yaml").write_text(f"model: fake\ninput: '-'\noutput: run\n{limits}\n", "utf-8")
    stream = io.StringIO()
    job = load_job(tmp_path / "job.yaml")
    assert run_job(job, lambda job: FakeLLM(), stream, Silent(signum)) == code
    assert stream.getvalue() == said
    assert not (tmp_path / "run").exists()


class Writer:
    """Sends a row into a pipe, waits until its result is kept, sends the next; then closes the pipe or sends a signal.

    A run that first waited for more rows would wait for ever.
    """

    def __init__(self, folder: Path, rows: list[dict], signum: int | None = None):
        reading, self._writing = os.pipe()
        self.stdin = os.fdopen(reading, "rb")
        self.num_kept = 0
        self._rows, self._signum, self._journal = rows, signum, folder / "run" / "journal.jsonl"
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        for row in self._rows:
            os.write(self._writing, json.dumps(row).encode() + b"\n")
            until = time.monotonic() + 60
            while not self._is_kept(row["id"]) and time.monotonic() < until:
                time.sleep(0.01)
            self.num_kept += self._is_kept(row["id"])
        if self._signum is None:
            os.close(self._writing)
        else:
            os.kill(os.getpid(), self._signum)

    def _is_kept(self, key: str) -> bool:
        return self._journal.exists() and f'"id":"{key}"' in self._journal.read_text("utf-8").replace(" ", "")

    def end(self) -> None:
        self._thread.join()
        self.stdin.close()
        if self._signum is not None:
            os.close(self._writing)


ROWS = [{"id": key, "prompt": f"the {key}"} for key in ("one", "two", "three")]


@pytest.mark.parametrize(("signum", "code"), [(None, 0), (signal.SIGTERM, 143)])
def test_each_row_of_a_slow_pipe_is_done_when_it_comes(tmp_path, make_llm, signum, code):
    (tmp_path / "job.yaml").write_text(
        "model: tiny\ninput: '-'\noutput: run\nprogress: none\nsampling: {max_tokens: 4, temperature: 0}\n", "utf-8"
    )
    job, llm, stream = load_job(tmp_path / "job.yaml"), make_llm("llama-f32"), io.StringIO()
    writer = Writer(tmp_path, ROWS, signum)
    try:
        assert run_job(job, lambda job: llm, stream, writer.stdin) == code
    finally:
        writer.end()
    assert writer.num_kept == 3
    assert "read-ahead" not in {thread.name for thread in threading.enumerate()}
    if code == 0:
        results = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text("utf-8").splitlines()]
        assert [(row["id"], row["usage"]["completion_tokens"]) for row in results] == [
            ("one", 4),
            ("two", 4),
            ("three", 4),
        ]
    else:
        assert "3 rows are done and kept" in stream.getvalue()
