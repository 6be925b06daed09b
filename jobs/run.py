"""Run a job from its file to its results, and end in the right exit code whatever happens.

Owns the order of things: everything that can be refused without the model is refused first; the model is loaded; rows
are generated; the results take their name; the manifest says how it ended.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO, TextIO

from jobs import exit_codes
from jobs.generation import Generation
from jobs.inputs import RowSource
from jobs.job_file import Job
from jobs.lifecycle import Stopped, StopSignals
from jobs.manifest import Manifest
from jobs.progress import Progress, make_display
from jobs.prompts import PromptBuilder
from jobs.results import PartialFile
from jobs.rows import RowParser
from jobs.run_directory import RunDirectory, RunLog
from jobs.summary import summarize
from nanovllm import UsageError

logger = logging.getLogger("jobs")


def load_llm(job: Job) -> Any:
    """Load the model of a job."""
    from nanovllm import LLM, resolve_model

    return LLM(resolve_model(job.model, relative_to=job.model_folder), **job.engine)


def run_job(
    job: Job,
    llm_factory: Callable[[Job], Any] = load_llm,
    stderr: TextIO | None = None,
    stdin: BinaryIO | None = None,
) -> int:
    """Run a job.

    Returns:
        The exit code: 0, 1, 3, 130 or 143.

    Raises:
        UsageError: files, settings or the model are unusable; nothing was generated.
    """
    stderr = stderr or sys.stderr
    source = RowSource(list(job.inputs), stdin)
    source.check()
    prompts = PromptBuilder(job.prompt)
    directory = RunDirectory(job.output)
    directory.prepare(job.inputs, job.restart)
    with RunLog(directory.log, stderr), StopSignals() as signals:
        return _Run(job, source, prompts, directory, signals, stderr).run(llm_factory)


class _Run:
    """One run in its directory, from loading the model on."""

    def __init__(
        self,
        job: Job,
        source: RowSource,
        prompts: PromptBuilder,
        directory: RunDirectory,
        signals: StopSignals,
        stderr: TextIO,
    ):
        self._job = job
        self._source = source
        self._prompts = prompts
        self._directory = directory
        self._signals = signals
        self._stderr = stderr
        self._manifest = Manifest(directory.manifest, job)
        self._generation: Generation | None = None
        self._load_s = self._generate_s = 0.0

    def run(self, llm_factory: Callable[[Job], Any]) -> int:
        """Load, generate, finish."""
        logger.info("run of %s begins; output %s", self._job.path, self._directory.path)
        try:
            self._generate(llm_factory)
        except UsageError as error:
            self._end("failed", exit_codes.UNUSABLE_INPUT, str(error))
            raise
        except (Stopped, KeyboardInterrupt) as stop:
            return self._end_stopped(stop)
        except Exception as error:
            return self._end_failed(error)
        return self._end_finished()

    def _generate(self, llm_factory: Callable[[Job], Any]) -> None:
        began = time.monotonic()
        llm = llm_factory(self._job)
        self._prompts.use_tokenizer(llm.tokenizer)
        sampling = _effective_sampling(llm, self._job)
        self._manifest.set_model(llm, sampling, self._job)
        self._load_s = time.monotonic() - began
        logger.info("model %s is loaded: %s", self._job.model, llm.facts())
        self._say(f"{self._job.model}: loaded in {self._load_s:.1f} s")

        self._directory.forget()
        self._manifest.write("running")
        sink = PartialFile(self._directory.partial, self._directory.results)
        try:
            generation = self._generation = Generation(self._job, llm, sampling, sink, self._signals)
            total = _limited(self._source.count(), self._job.limit)
            display = make_display(self._job.progress, self._stderr, total)
            with Progress(display, lambda: generation.snapshot(total)):
                generation.run(self._source.rows(self._job.limit), RowParser(self._prompts))
            self._generate_s = generation.seconds
            with self._signals.shielded():
                sink.finish()
        finally:
            self._generate_s = self._generate_s or (self._generation.seconds if self._generation else 0.0)
            sink.close()

    def _end_finished(self) -> int:
        tally = self._generation.tally
        is_good = self._job.limits.allow(tally.errors, tally.rows)
        code = exit_codes.OK if is_good else exit_codes.TOO_MANY_ERRORS
        self._end("finished", code, None)
        self._say(summarize(self._job, self._directory, tally, self._load_s, self._generate_s))
        if not is_good:
            limits = self._job.limits
            self._say(
                f"more error rows than allowed: {tally.errors}, and the limits are max_errors {limits.max_errors} and "
                f"max_error_rate {limits.max_error_rate:g} (exit code {code}); the error rows are in the results"
            )
        return code

    def _end_stopped(self, stop: BaseException) -> int:
        signum = signal.Signals(stop.signum if isinstance(stop, Stopped) else signal.SIGINT)
        code, name = exit_codes.for_signal(signum), signum.name
        self._end("interrupted", code, f"stopped by {name}")
        if self._generation is None:
            self._say(f"stopped by {name} before anything was generated")
        else:
            self._say(
                f"stopped by {name}: {self._generation.tally.rows} rows are done and kept in "
                f"{self._directory.partial}; the same command starts from the first row again"
            )
        return code

    def _end_failed(self, error: Exception) -> int:
        logger.error("internal failure\n%s", traceback.format_exc())
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        try:
            self._end("failed", exit_codes.INTERNAL_FAILURE, cause)
        except OSError as unwritable:
            logger.error("the manifest cannot be written: %s", unwritable)
        kept = "" if self._generation is None else f"; rows done so far are kept in {self._directory.partial}"
        self._say(f"nanovllm run: internal failure ({cause}); the traceback is in {self._directory.log}{kept}")
        return exit_codes.INTERNAL_FAILURE

    def _end(self, status: str, exit_code: int, error: str | None) -> None:
        logger.info("run ends: %s, exit code %d%s", status, exit_code, f": {error}" if error else "")
        if self._generation is None and self._directory.results.exists():
            return  # an earlier run's results are still there, and its manifest belongs to them
        if self._generation is not None:
            self._manifest.set_counts(self._generation.tally, self._load_s, self._generate_s)
            self._manifest.set_inputs(self._source.facts())
        self._manifest.write(status, exit_code, error)

    def _say(self, text: str) -> None:
        try:
            print(text, file=self._stderr, flush=True)
        except (OSError, ValueError):
            logger.info("stderr is closed; not shown: %s", text)


def _effective_sampling(llm: Any, job: Job) -> Any:
    from nanovllm import SamplingParams

    return SamplingParams.from_dict(job.sampling, base=llm.default_sampling_params())


def _limited(count: int | None, limit: int | None) -> int | None:
    if count is None or limit is None:
        return count
    return min(count, limit)
