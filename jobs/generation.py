"""Drive the engine over the rows of a job.

Owns the flow: rows are read only as fast as the engine takes them, a row whose result an earlier process left is not
done again, every row gives exactly one result, and each result goes to the journal at once. Knows no displays.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jobs.fingerprint import changed_parts
from jobs.job_file import Job
from jobs.journal import Entry, Journal
from jobs.lifecycle import StopSignals
from jobs.progress import Snapshot
from jobs.readers import RawRow
from jobs.result_lines import Result
from jobs.rows import Row, RowParser, with_place
from jobs.sharding import is_in_shard
from jobs.tally import Resumed, Tally, head_values
from jobs.work import Completions, InFlight
from nanovllm import RequestError, UsageError

_NUM_LOGGED_ERRORS = 20
_NUM_LOGGED_CHANGES = 20

logger = logging.getLogger("jobs")


class TooManyErrors(Exception):
    """So many error rows that the rest of the rows cannot save the run."""


class Generation:
    """One pass over the rows of a job.

    Args:
        job: the job.
        llm: the loaded model.
        work: what is asked of it for each row.
        journal: takes the results, and has those of an earlier process.
        signals: holds a signal back while a result is written.
        deadline: when no more results count, on `clock`; None is never.
        clock: seconds that only go forward.

    Attributes:
        tally: what was done so far.
        num_in_flight: rows that the engine has and has not answered.
        is_out_of_time: whether rows were left out because they would not have ended before the deadline.
    """

    def __init__(
        self,
        job: Job,
        llm: Any,
        work: Completions,
        journal: Journal,
        signals: StopSignals,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.tally = Tally(resumed=Resumed() if journal.recovery.num_entries else None)
        self.num_in_flight = 0
        self.is_out_of_time = False
        self._job = job
        self._llm = llm
        self._work = work
        self._journal = journal
        self._signals = signals
        self._deadline = deadline
        self._clock = clock
        self._total: int | None = None
        self._row_seconds = 0.0
        self._unread: str | None = None
        self._started_at = clock()

    def run(self, raw_rows: Iterator[RawRow | None], parser: RowParser, total: int | None = None) -> None:
        """Do all rows, of which there are `total` if that is known; a None says that there is none at the moment.

        Raises:
            UsageError: the input was not read to its end, or was empty, and an earlier process finished more rows.
            TooManyErrors: the job wants to stop early, and no rest of the rows can keep it within its limits.
            OSError: the journal cannot be written any more.
        """
        self._total = total
        with contextlib.closing(self._work.serve(self._requests(raw_rows, parser))) as answers:
            for flight, answer in answers:
                self.num_in_flight -= 1
                self._row_seconds = self._clock() - flight.taken_at
                try:
                    result = self._work.result(flight.row, answer)
                except RequestError as error:
                    self._refuse(flight.row, with_place(error, flight.row.place))
                    continue
                self._take(flight.row, result, f"r:{flight.row.id}", flight.fingerprint)
                self._check_limits()
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

    def _requests(self, raw_rows: Iterator[RawRow | None], parser: RowParser) -> Iterator[Any]:
        passed_over, next_index = None, 0
        for raw in raw_rows:
            if raw is None:
                yield None
                continue
            index, next_index = next_index, next_index + 1
            if raw.is_cut:
                self._unread = f"{raw.place()} {raw.problem}"
            row = parser.parse(index, raw)
            if self._job.shard is not None and not is_in_shard(row.id, self._job.shard):
                passed_over = row
                continue
            if passed_over is not None and passed_over.index == index - 1:
                with contextlib.suppress(RequestError):
                    self._work.take(passed_over)  # so that the row counts what it shares with the one before it
            try:
                flight = self._work.take(row)
            except RequestError as error:
                self._refuse(row, with_place(error, row.place))
                continue
            if self._keep(flight):
                continue
            flight.taken_at = self._clock()
            if self._deadline is not None and flight.taken_at + self._row_seconds >= self._deadline:
                self.is_out_of_time = True
                return
            self.num_in_flight += 1
            yield from flight.requests

        if next_index == 0:
            self._unread = "the input has no rows"
        elif next_index == self._job.limit < self._journal.recovery.num_entries:
            self._unread = f"only {next_index} rows are read (limit)"

    def _keep(self, flight: InFlight) -> bool:
        """Take over the result of an earlier process, if there is one of the same fingerprint."""
        resumed, row = self.tally.resumed, flight.row
        if resumed is None:
            return False
        entry = self._journal.find(f"r:{row.id}")
        if entry is None:
            resumed.new += 1
            return False
        changed = changed_parts(entry.head["fingerprint"], flight.fingerprint)
        if changed:
            resumed.changed.update(["+".join(changed)])
            if resumed.changed.total() <= _NUM_LOGGED_CHANGES:
                logger.info("row %d (%s) is done again: changed %s", row.index, row.id, ", ".join(changed))
            return False
        return self._take_over(row, entry)

    def _take_over(self, row: Row, entry: Entry) -> bool:
        head, digest = entry.head, self._work.digest(row)
        moved = None
        if head["row"] != digest:  # the same answer at another place, beside other columns, or judged in another way
            moved = self._work.moved(row, self._journal.lines(entry))
            if moved is None:
                self.tally.resumed.changed.update(["evaluation"])
                return False
            moved.num_prompt_tokens, moved.num_completion_tokens, moved.num_cached_tokens = head["tokens"]
            head = {**head, **head_values(moved, is_retryable=False)}
        with self._signals.shielded():
            if moved is None:
                self._journal.keep(entry)
            else:
                values = {"fingerprint": head["fingerprint"], "row": digest, **head_values(moved, is_retryable=False)}
                self._journal.append(row.index, head["key"], values, moved.lines)
            self.tally.add_head(head, head["lines"] if moved is None else len(moved.lines))
            self.tally.resumed.kept += 1
        return True

    def _refuse(self, row: Row, error: RequestError) -> None:
        if self.tally.errors < _NUM_LOGGED_ERRORS:
            logger.warning("row %d (%s): %s: %s", row.index, row.place, error.code, error.message)
        result = self._work.refused(row, error)
        key = f"e:{row.index}"
        entry = self._journal.find(key) if self.tally.resumed is not None else None
        if entry is not None and self._journal.lines(entry) == result.lines:
            # judged again and with the same end: nothing new to write down
            with self._signals.shielded():
                self._journal.keep(entry)
                self.tally.add(result, error.retryable)
        else:
            self._take(row, result, key, None, error.retryable)
        self._check_limits()

    def _take(self, row: Row, result: Result, key: str, fingerprint: str | None, is_retryable: bool = False) -> None:
        values = {"fingerprint": fingerprint, "row": self._work.digest(row), **head_values(result, is_retryable)}
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
        if dropped and self._unread is not None and self._job.shard is None:
            raise UsageError(
                f"{self._unread}, and {dropped} rows that an earlier process finished were not met: they stay in "
                f"{self._journal.path}; run the whole input to go on, choose another output, or give --restart to "
                "forget them"
            )
        self.tally.resumed.dropped = dropped


def _read(stats: Any, name: str) -> int:
    return stats[name] if isinstance(stats, Mapping) else getattr(stats, name)
