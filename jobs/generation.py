"""Drive the engine over the rows of a job.

Owns the flow: rows are read only as fast as the engine takes them, a row whose result an earlier process left is not
done again, every row gives exactly one result, and each result goes to the journal at once. Knows no displays.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs import json_text
from jobs.fingerprint import Fingerprints, changed_parts, row_digest
from jobs.job_file import Job
from jobs.journal import Entry, Journal
from jobs.lifecycle import StopSignals
from jobs.overlong import fit_prompt
from jobs.progress import Snapshot
from jobs.readers import RawRow
from jobs.result_lines import Result, answered, refused
from jobs.rows import Row, RowParser, sampling_of
from jobs.sharding import is_in_shard
from jobs.tally import Resumed, Tally, head_values
from nanovllm import Request, RequestError

_NUM_LOGGED_ERRORS = 20
_NUM_LOGGED_CHANGES = 20

logger = logging.getLogger("jobs")


class TooManyErrors(Exception):
    """So many error rows that the rest of the rows cannot save the run."""


@dataclass(slots=True)
class _InFlight:
    """A row in the engine."""

    row: Row
    fingerprint: str
    taken_at: float


class Generation:
    """One pass over the rows of a job.

    Args:
        job: the job.
        llm: the loaded model.
        sampling: the job's sampling parameters over the model's defaults.
        journal: takes the results, and has those of an earlier process.
        signals: holds a signal back while a result is written.
        deadline: when no more results count, on `clock`; None is never.
        clock: seconds that only go forward.

    Attributes:
        tally: what was done so far.
        is_out_of_time: whether rows were left out because they would not have ended before the deadline.
    """

    def __init__(
        self,
        job: Job,
        llm: Any,
        sampling: Any,
        journal: Journal,
        signals: StopSignals,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.tally = Tally(resumed=Resumed() if journal.recovery.num_entries else None)
        self.is_out_of_time = False
        self._job = job
        self._llm = llm
        self._sampling = sampling
        self._journal = journal
        self._signals = signals
        self._deadline = deadline
        self._clock = clock
        self._fingerprints = Fingerprints(llm, job)
        self._total: int | None = None
        self._row_seconds = 0.0
        self._started_at = clock()

    def run(self, raw_rows: Iterator[RawRow], parser: RowParser, total: int | None = None) -> None:
        """Do all rows, of which there are `total` if that is known.

        Raises:
            TooManyErrors: the job wants to stop early, and no rest of the rows can keep it within its limits.
            OSError: the journal cannot be written any more.
        """
        self._total = total
        # closed when the pass breaks off, so that the engine drops what is in flight
        with contextlib.closing(self._llm.generate_iter(self._requests(raw_rows, parser))) as outputs:
            for output in outputs:
                flight: _InFlight = output.data
                self._row_seconds = self._clock() - flight.taken_at
                if output.error is not None:
                    self._refuse(flight.row, output.error)
                else:
                    self._take(flight.row, answered(flight.row, output), f"r:{flight.row.id}", flight.fingerprint)
        if self.tally.resumed is not None and not self.is_out_of_time:
            self._count_dropped()

    @property
    def seconds(self) -> float:
        """Time since the pass began."""
        return self._clock() - self._started_at

    def snapshot(self, total: int | None) -> Snapshot:
        """Say where the pass stands. May be called from another thread."""
        stats = self._llm.stats()
        return Snapshot(
            rows=self.tally.rows,
            total=total,
            errors=self.tally.errors,
            running=_read(stats, "running"),
            waiting=_read(stats, "waiting"),
            completion_tokens=_read(stats, "completion_tokens"),
            seconds=self.seconds,
            kept=self.tally.resumed.kept if self.tally.resumed else 0,
        )

    def _requests(self, raw_rows: Iterator[RawRow], parser: RowParser) -> Iterator[Request]:
        for index, raw in enumerate(raw_rows):
            row = parser.parse(index, raw)
            if self._job.shard is not None and not is_in_shard(row.id, self._job.shard):
                continue
            try:
                request = self._request(row)
            except RequestError as error:
                self._refuse(row, error)
                continue
            if self._keep(row, request.data.fingerprint):
                continue
            if self._deadline is not None and self._clock() + self._row_seconds >= self._deadline:
                self.is_out_of_time = True
                return
            yield request

    def _request(self, row: Row) -> Request:
        if row.error is not None:
            raise row.error
        sampling = sampling_of(row, self._sampling)
        prompt = row.prompt.value
        if isinstance(prompt, str):
            prompt = {"prompt_token_ids": self._llm.tokenizer.encode(prompt)}
        policy = self._job.on_overlong
        if policy.startswith("truncate"):
            prompt, row.num_cut_tokens = fit_prompt(
                row.prompt, policy, self._llm.tokenizer, self._llm.max_model_len, sampling.max_tokens
            )
        ids = prompt["prompt_token_ids"]
        fingerprint = self._fingerprints.of(row, ids, sampling)
        row.prompt = None  # the engine has it now; a row in flight holds its columns alone
        flight = _InFlight(row, fingerprint, self._clock())
        return Request(prompt=prompt, sampling_params=sampling, request_id=row.id, data=flight)

    def _keep(self, row: Row, fingerprint: str) -> bool:
        """Take over the result of an earlier process, if there is one of the same fingerprint."""
        resumed = self.tally.resumed
        if resumed is None:
            return False
        entry = self._journal.find(f"r:{row.id}")
        if entry is None:
            resumed.new += 1
            return False
        changed = changed_parts(entry.head["fingerprint"], fingerprint)
        if changed:
            resumed.changed.update(["+".join(changed)])
            if resumed.changed.total() <= _NUM_LOGGED_CHANGES:
                logger.info("row %d (%s) is done again: changed %s", row.index, row.id, ", ".join(changed))
            return False
        with self._signals.shielded():
            self._take_over(row, entry)
            resumed.kept += 1
        return True

    def _take_over(self, row: Row, entry: Entry) -> None:
        head = entry.head
        digest = row_digest(row.index, row.id, row.columns)
        if head["row"] == digest:
            self._journal.keep(row.index, entry)
        else:  # the same prompt at another place, or beside other columns
            lines = [_moved(line, row) for line in self._journal.lines(entry)]
            values = {name: head[name] for name in ("fingerprint", "status", "code", "retryable", "tokens")}
            self._journal.append(row.index, head["key"], {**values, "row": digest}, lines)
        self.tally.add_head(head, head["lines"])

    def _refuse(self, row: Row, error: RequestError) -> None:
        if self.tally.errors < _NUM_LOGGED_ERRORS:
            logger.warning("row %d (%s): %s: %s", row.index, row.place, error.code, error.message)
        result = refused(row, error, skip_overlong=self._job.on_overlong == "skip")
        key = f"e:{row.index}"
        entry = self._journal.find(key) if self.tally.resumed is not None else None
        if entry is not None and self._journal.lines(entry) == result.lines:
            # judged again and with the same end: nothing new to write down
            with self._signals.shielded():
                self._journal.keep(row.index, entry)
                self.tally.add(result, error.retryable)
        else:
            self._take(row, result, key, None, error.retryable)
        self._check_limits()

    def _take(self, row: Row, result: Result, key: str, fingerprint: str | None, is_retryable: bool = False) -> None:
        values = {"fingerprint": fingerprint, "row": row_digest(row.index, row.id, row.columns)}
        values.update(head_values(result, is_retryable))
        with self._signals.shielded():
            self._journal.append(row.index, key, values, result.lines)
            self.tally.add(result, is_retryable)

    def _check_limits(self) -> None:
        limits = self._job.limits
        if not limits.stop_early or (self._total is None and limits.max_error_rate > 0):
            return
        if not limits.allow(self.tally.errors, self._total or 0):
            raise TooManyErrors

    def _count_dropped(self) -> None:
        dropped = sum(entry.head["status"] == "ok" for entry in self._journal.unfound())
        self.tally.resumed.dropped = dropped


def _moved(line: str, row: Row) -> str:
    values = json.loads(line)
    if "row" in values:
        values.update(index=row.index, row=row.columns)
    return json_text.dumps(values)


def _read(stats: Any, name: str) -> int:
    return stats[name] if isinstance(stats, Mapping) else getattr(stats, name)
