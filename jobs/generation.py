"""Drive the engine over the rows of a job.

Owns the flow: rows are read only as fast as the engine takes them, every row gives exactly one result, and each result
goes to the sink at once. Knows neither files nor displays.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

from jobs.job_file import Job
from jobs.lifecycle import StopSignals
from jobs.overlong import cut_prompt
from jobs.progress import Snapshot
from jobs.readers import RawRow
from jobs.result_lines import Result, answered, refused
from jobs.results import ResultSink
from jobs.rows import Row, RowParser, row_sampling
from jobs.tally import Tally
from nanovllm import Request, RequestError

_NUM_LOGGED_ERRORS = 20

logger = logging.getLogger("jobs")


class Generation:
    """One pass over the rows of a job.

    Args:
        job: the job.
        llm: the loaded model.
        sampling: the job's sampling parameters over the model's defaults.
        sink: takes the results.
        signals: holds a signal back while a result is written.

    Attributes:
        tally: what was done so far.
    """

    def __init__(self, job: Job, llm: Any, sampling: Any, sink: ResultSink, signals: StopSignals):
        self.tally = Tally()
        self._job = job
        self._llm = llm
        self._sampling = sampling
        self._sink = sink
        self._signals = signals
        self._started_at = time.monotonic()

    def run(self, raw_rows: Iterator[RawRow], parser: RowParser) -> None:
        """Do all rows."""
        # closed when the pass breaks off, so that the engine drops what is in flight
        with contextlib.closing(self._llm.generate_iter(self._requests(raw_rows, parser))) as outputs:
            for output in outputs:
                row = output.data
                if output.error is not None:
                    self._refuse(row, output.error)
                else:
                    self._take(answered(row, output))

    @property
    def seconds(self) -> float:
        """Time since the pass began."""
        return time.monotonic() - self._started_at

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
        )

    def _requests(self, raw_rows: Iterator[RawRow], parser: RowParser) -> Iterator[Request]:
        for index, raw in enumerate(raw_rows):
            row = parser.parse(index, raw)
            try:
                request = self._request(row)
            except RequestError as error:
                self._refuse(row, error)
            else:
                yield request

    def _request(self, row: Row) -> Request:
        if row.error is not None:
            raise row.error
        sampling = row_sampling(self._sampling, row.sampling)
        prompt = row.prompt.value
        policy = self._job.on_overlong
        if policy.startswith("truncate") and not row.prompt.is_chat:
            prompt, row.num_cut_tokens = cut_prompt(
                prompt, policy, self._llm.tokenizer, self._llm.max_model_len, sampling.max_tokens
            )
        row.prompt = None  # the engine has it now; a row in flight holds its columns alone
        return Request(prompt=prompt, sampling_params=sampling, request_id=row.id, data=row)

    def _refuse(self, row: Row, error: RequestError) -> None:
        if self.tally.errors < _NUM_LOGGED_ERRORS:
            logger.warning("row %d (%s): %s: %s", row.index, row.place, error.code, error.message)
        self._take(refused(row, error, skip_overlong=self._job.on_overlong == "skip"))

    def _take(self, result: Result) -> None:
        with self._signals.shielded():
            self._sink.write(result)
            self.tally.add(result)


def _read(stats: Any, name: str) -> int:
    return stats[name] if isinstance(stats, Mapping) else getattr(stats, name)
