"""Run a job from its file to its results, and end in the right exit code whatever happens.

Owns the order of things: everything that can be refused without the model is refused first; a finished run to which
nothing changed is left alone; the model is loaded; rows are generated or taken over from the journal; the results take
their name; the manifest says how it ended.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from jobs import exit_codes, json_text
from jobs.fingerprint import run_facts
from jobs.generation import Generation, TooManyErrors
from jobs.inputs import RowSource, row_source
from jobs.job_file import Job
from jobs.journal import Journal
from jobs.lifecycle import DeadlineReached, Stopped, StopSignals
from jobs.lock import Locked
from jobs.manifest import Manifest
from jobs.progress import Progress, make_display
from jobs.prompts import PromptBuilder
from jobs.read_ahead import ReadAhead
from jobs.results import write_results
from jobs.rows import row_parser
from jobs.run_directory import RunDirectory, RunLog
from jobs.status import StatusFile, rewrite_exit_code
from jobs.summary import summarize
from jobs.work import default_sampling, make_ending, make_work, prompt_builder
from nanovllm import ConfigError, UsageError

logger = logging.getLogger("jobs")


def load_llm(job: Job) -> Any:
    """Load the model of a job."""
    from nanovllm import LLM

    return LLM(find_model(job), **job.engine)


def find_model(job: Job) -> Path:
    """Find the directory of a job's model."""
    from nanovllm import resolve_model

    return resolve_model(job.model, relative_to=job.model_folder)


def run_job(
    job: Job,
    llm_factory: Callable[[Job], Any] = load_llm,
    stderr: TextIO | None = None,
    stdin: BinaryIO | None = None,
) -> int:
    """Run a job, or what is left of it.

    Returns:
        The exit code: 0, 1, 2 (the output cannot be written any more), 3, 4, 5, 6, 130 or 143.

    Raises:
        UsageError: files, settings or the model are unusable; nothing was generated.
    """
    started_at = time.monotonic()
    stderr = stderr or sys.stderr
    try:
        with StopSignals() as signals:
            if job.limits.deadline is not None:
                signals.set_alarm(job.limits.deadline)
            source = row_source(job, stdin)
            source.check()  # waits for the first bytes of a pipe
            prompts = prompt_builder(job)
            directory = RunDirectory(job.output)
            directory.create()
            with RunLog(directory.log, stderr), directory.held():
                directory.check(job.inputs)
                run = _Run(job, source, prompts, directory, signals, stderr, started_at)
                if run.is_nothing_to_do():
                    signals.hold()
                    return run.leave_alone()
                with StatusFile(directory.status) as status:
                    return run.run(llm_factory, status)
    except Stopped as stop:  # before there was anything to save
        _say(stderr, f"nanovllm run: stopped by {stop}: nothing was generated")
        return exit_codes.for_signal(stop.signum)
    except DeadlineReached:
        _say(stderr, f"the deadline is reached: nothing was generated (exit code {exit_codes.DEADLINE})")
        return exit_codes.DEADLINE
    except Locked as error:
        _say(stderr, f"nanovllm run: {error} (exit code {exit_codes.LOCKED})")
        return exit_codes.LOCKED


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
        started_at: float,
    ):
        self._job = job
        self._source = source
        self._prompts = prompts
        self._directory = directory
        self._signals = signals
        self._stderr = stderr
        self._deadline = None if job.limits.deadline is None else started_at + job.limits.deadline
        self._earlier = None if job.restart else directory.read_manifest()
        self._facts: dict[str, str] | None = None
        self._manifest = Manifest(directory.manifest, job)
        self._generation: Generation | None = None
        self._load_s = self._generate_s = 0.0
        self._ending = make_ending(job, directory)
        self._refuse_other_shard()
        self._refuse_fewer_rows()

    def is_nothing_to_do(self) -> bool:
        """Whether the directory holds this very run, finished, with nothing that another try could mend."""
        self._facts = run_facts(self._job, self._source, self._model_dir())
        earlier = self._earlier
        if earlier is None or earlier.get("status") != "finished":
            return False
        if not (self._directory.results.exists() and self._directory.heads.exists()):
            return False
        if self._ending is not None and not self._directory.scores.exists():
            return False
        before = earlier.get("facts")
        if self._facts is None or not isinstance(before, dict):
            logger.info("whether anything changed since the finished run can only be told with the model loaded")
            return False
        changed = sorted(key for key in {*self._facts, *before} if self._facts.get(key) != before.get(key))
        if changed:
            self._say(f"{self._job.name}: changed since the finished run: {', '.join(changed)}")
            logger.info("changed since the finished run: %s", ", ".join(changed))
        elif earlier.get("retryable_errors"):
            self._say(f"{self._job.name}: finished, but {earlier['retryable_errors']} error rows are tried again")
        return not changed and not earlier.get("retryable_errors")

    def leave_alone(self) -> int:
        """Say that a finished run stays as it is."""
        self._directory.journal.unlink(missing_ok=True)  # of a process that ended between two of its last steps
        counts = self._earlier["counts"]
        self._say(
            f"{self._job.name}: already finished, nothing changed: {counts['rows']} rows, {counts['errors']} errors; "
            f"results: {self._directory.results} (--restart does all of it again)"
        )
        if self._ending is not None:
            self._ending.read()
        code = self._final_code(counts["errors"], counts["rows"])
        verdicts = None if self._ending is None else self._ending.verdicts
        if self._manifest.judge_again(self._earlier, verdicts, code):
            rewrite_exit_code(self._directory.status, code)
        self._say_verdicts(code, counts["errors"])
        return code

    def run(self, llm_factory: Callable[[Job], Any], status: StatusFile) -> int:
        """Load, generate, finish."""
        logger.info("run of %s begins; output %s", self._job.path, self._directory.path)
        self._status = status
        try:
            if self._deadline is not None:
                self._signals.set_alarm(self._deadline - time.monotonic())
            self._generate(llm_factory)
            if self._generation.is_out_of_time:
                raise DeadlineReached
            return self._end_finished()
        except UsageError as error:
            self._signals.hold()
            self._end("failed", exit_codes.UNUSABLE_INPUT, str(error))
            raise
        except DeadlineReached:
            return self._end_early("deadline", exit_codes.DEADLINE, "the deadline is reached")
        except KeyboardInterrupt as stop:
            return self._end_stopped(stop)
        except TooManyErrors:
            return self._end_early("too_many_errors", exit_codes.TOO_MANY_ERRORS, "more error rows than allowed")
        except OSError as error:
            return self._end_unwritable(error) if self._directory.is_to_blame(error) else self._end_failed(error)
        except Exception as error:
            return self._end_failed(error)

    def _generate(self, llm_factory: Callable[[Job], Any]) -> None:
        from nanovllm import SamplingParams

        began = time.monotonic()
        self._status.enter("loading")
        llm = llm_factory(self._job)
        self._prompts.use_tokenizer(llm.tokenizer)
        defaults = default_sampling(self._job, llm.default_sampling_params())
        sampling = SamplingParams.from_dict(self._job.sampling, base=defaults)
        self._manifest.set_model(llm, sampling, defaults, self._job)
        self._manifest.set_facts(self._facts)
        self._load_s = time.monotonic() - began
        logger.info("model %s is loaded: %s", self._job.model, llm.facts())
        self._say(f"{self._job.model}: loaded in {self._load_s:.1f} s")

        with contextlib.closing(self._open_journal()) as journal:
            self._manifest.write("running")
            clock = time.monotonic
            work = make_work(self._job, llm, sampling, self._prompts)
            generation = Generation(self._job, llm, work, journal, self._signals, self._deadline, clock)
            self._generation = generation
            total = None if self._job.shard else _limited(self._source.count(), self._job.limit)
            self._status.enter("generating", lambda: generation.snapshot(total))
            try:
                display = make_display(self._job.progress, self._stderr, total)
                with Progress(display, lambda: generation.snapshot(total)), self._raw_rows(generation) as raw_rows:
                    generation.run(raw_rows, row_parser(self._job, self._prompts), total)
            finally:
                self._generate_s = generation.seconds
            if not generation.is_out_of_time:
                self._signals.hold()
                self._status.enter("finishing")
                journal.sync()
                write_results(journal, self._directory.results, self._directory.heads)
                self._score()

    def _raw_rows(self, generation: Generation) -> contextlib.closing:
        rows = self._source.rows(self._job.limit)
        if self._source.may_wait():
            rows = ReadAhead(rows, self._source.give_up, lambda: generation.num_in_flight > 0)
        return contextlib.closing(rows)

    def _score(self) -> None:
        if self._ending is None:
            return
        self._manifest.set_counts(self._generation.tally, self._load_s, self._generate_s)
        self._ending.write(self._source.facts(), self._manifest.values, self._prompts.continuation_delimiter)
        self._manifest.set_verdicts(self._ending.verdicts)

    def _open_journal(self) -> Journal:
        if self._job.restart:
            self._directory.forget()
        self._directory.reopen()
        journal = Journal(self._directory.journal)
        found = journal.recovery
        if found.num_cut_bytes and found.num_entries:
            logger.warning(
                "%s: a torn tail of %d bytes is cut off; %d whole rows are left",
                journal.path, found.num_cut_bytes, found.num_entries,
            )  # fmt: skip
        elif found.num_cut_bytes:
            logger.warning("%s: a torn beginning of %d bytes is cut off", journal.path, found.num_cut_bytes)
        if found.num_entries:
            self._manifest.continue_from(self._earlier)
            logger.info("continuing: %d results of an earlier process are found", found.num_entries)
            self._say(f"{self._job.name}: continuing with {found.num_entries} results of an earlier process")
        return journal

    def _end_finished(self) -> int:
        tally = self._generation.tally
        code = self._final_code(tally.errors, tally.rows)
        self._end("finished", code, None)
        # last: with the manifest written, results and heads can make it again
        self._directory.journal.unlink(missing_ok=True)
        if tally.resumed is not None:
            logger.info("resumed: %s", tally.resumed.as_json())
        scores = None if self._ending is None else self._ending.scores
        self._say(summarize(self._job, self._directory, tally, self._load_s, self._generate_s, scores))
        self._say_verdicts(code, tally.errors)
        return code

    def _final_code(self, num_errors: int, num_rows: int) -> int:
        if not self._job.limits.allow(num_errors, num_rows):
            return exit_codes.TOO_MANY_ERRORS
        return exit_codes.GATE_FAILED if self._failures() else exit_codes.OK

    def _failures(self) -> list[str]:
        return [] if self._ending is None else self._ending.failures

    def _say_verdicts(self, code: int, num_errors: int) -> None:
        for verdict in [] if self._ending is None else self._ending.verdicts:
            logger.info("gate: %s", verdict.sentence)
            self._say(f"gate: {verdict.sentence}" + ("" if verdict.holds else f" (exit code {code})"))
        if code == exit_codes.TOO_MANY_ERRORS:
            limits = self._job.limits
            self._say(
                f"more error rows than allowed: {num_errors}, and the limits are max_errors {limits.max_errors} and "
                f"max_error_rate {limits.max_error_rate:g} (exit code {code}); the error rows are in the results"
            )

    def _end_stopped(self, stop: BaseException) -> int:
        signum = signal.Signals(stop.signum if isinstance(stop, Stopped) else signal.SIGINT)
        return self._end_early("interrupted", exit_codes.for_signal(signum), f"stopped by {signum.name}")

    def _end_early(self, status: str, code: int, cause: str) -> int:
        self._signals.hold()
        try:
            self._end(status, code, cause)
        except OSError as error:
            logger.error("the manifest cannot be written: %s", error)
        self._say(f"{cause}: {self._kept()}" + (f" (exit code {code})" if status != "interrupted" else ""))
        return code

    def _end_unwritable(self, error: OSError) -> int:
        cause = f"the output directory {self._directory.path} cannot be written any more: {error.strerror or error}"
        logger.error("%s", cause)
        code = exit_codes.UNUSABLE_INPUT
        return self._end_early("failed", code, f"nanovllm run: {cause}")

    def _end_failed(self, error: Exception) -> int:
        self._signals.hold()
        logger.error("internal failure\n%s", traceback.format_exc())
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        try:
            self._end("failed", exit_codes.INTERNAL_FAILURE, cause)
        except OSError as unwritable_error:
            logger.error("the manifest cannot be written: %s", unwritable_error)
        self._say(
            f"nanovllm run: internal failure ({cause}); the traceback is in {self._directory.log}; {self._kept()}"
        )
        return exit_codes.INTERNAL_FAILURE

    def _kept(self) -> str:
        if not self._directory.journal.exists():
            return "nothing was generated" if self._generation is None else "the rows that were done are gone with it"
        if self._generation is None:
            return f"what was done before is kept in {self._directory.journal}, and the same command continues"
        return (
            f"{self._generation.tally.rows} rows are done and kept in {self._directory.journal}, and the same "
            "command continues"
        )

    def _end(self, status: str, exit_code: int, error: str | None) -> None:
        logger.info("run ends: %s, exit code %d%s", status, exit_code, f": {error}" if error else "")
        self._status.end(status, exit_code)
        if self._generation is None and (self._directory.results.exists() or self._directory.journal.exists()):
            return  # an earlier run's rows are still there, and its manifest belongs to them
        if self._generation is not None:
            self._manifest.set_counts(self._generation.tally, self._load_s, self._generate_s)
            if status == "finished":
                self._manifest.set_inputs(self._source.facts())
        self._manifest.write(status, exit_code, error)

    def _model_dir(self) -> Path | None:
        try:
            return find_model(self._job)
        except UsageError:
            return None  # loading will say it

    def _refuse_other_shard(self) -> None:
        earlier = self._earlier or {}
        before = (earlier.get("job") or {}).get("shard")
        now = None if self._job.shard is None else str(self._job.shard)
        if self._earlier is not None and before != now and earlier.get("status") != "starting":
            raise ConfigError(
                f"{self._directory.path} holds shard {before or 'none'} of a run and this is {now or 'none'}: choose "
                "another output, or give --restart to forget it"
            )

    def _refuse_fewer_rows(self) -> None:
        earlier, limit = self._earlier or {}, self._job.limit
        rows = (earlier.get("counts") or {}).get("rows", 0)
        if limit is not None and earlier.get("status") == "finished" and rows > limit:
            raise ConfigError(
                f"{self._directory.path} holds the results of {rows} rows, and the limit is {limit}: choose another "
                "output, or give --restart to forget them"
            )

    def _say(self, text: str) -> None:
        _say(self._stderr, json_text.dumps({"message": text}) if self._job.progress == "json" else text)


def _say(stderr: TextIO, text: str) -> None:
    try:
        print(text, file=stderr, flush=True)
    except (OSError, ValueError):
        logger.info("stderr is closed; not shown: %s", text)


def _limited(count: int | None, limit: int | None) -> int | None:
    if count is None or limit is None:
        return count
    return min(count, limit)
