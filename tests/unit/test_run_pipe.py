"""A run that waits for a pipe ends when it is told to, by a signal or by its deadline."""

import io
import os
import signal
import time

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
