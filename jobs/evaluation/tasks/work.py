"""The work of an evaluation: each row is prepared, asked of the model, and its answer judged.

Owns the shape of an evaluation's result lines. What is asked and how it is judged is the task's affair. A judgement is
a pure function of the answer and the row, so that an answer that was kept is judged anew without the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Protocol

from jobs import json_text
from jobs.evaluation.cases import Case, CaseReader
from jobs.evaluation.settings import EvalSettings
from jobs.fingerprint import row_digest
from jobs.job_file import Job
from jobs.result_lines import Result, line_head, refused_status
from jobs.rows import Row
from jobs.work import InFlight
from nanovllm import RequestError

# Keys of a line that hold what the model said, and are kept when the row is judged anew.
_ANSWER = ("choices", "logprob", "num_tokens", "num_words", "num_bytes")
# Keys that the judgement sets, in the order of a line. The row's own columns come last.
_JUDGED = ("prompt", "prompt_hash", "target", "extracted", "voted", "scores", "group")


class Asking(Protocol):
    """What a task asks of the model."""

    def take(self, row: Row) -> InFlight:
        """Make the requests of a row. Raises RequestError."""

    def serve(self, requests: Iterator[Any]) -> Iterator[tuple[InFlight, Any]]:
        """Have the engine do requests, and give each row with its answer as it ends."""

    def lines(self, row: Row, answer: Any) -> tuple[list[dict[str, Any]], tuple[int, int, int]]:
        """Give the lines of an answer, and its prompt, completion and cached tokens. Raises RequestError."""


class Judging(Protocol):
    """How a task judges."""

    def suffices(self, lines: list[dict[str, Any]]) -> bool:
        """Whether kept lines hold all that is judged."""

    def judge(self, lines: list[dict[str, Any]], case: Case) -> None:
        """Set text, target, extracted and scores in the lines of one row. Raises RequestError."""


class EvaluationWork:
    """The work of an evaluation job.

    Args:
        job: the job.
        asking, judging: the task.
        has_frame: whether something is put around a row's own question.
    """

    def __init__(self, job: Job, asking: Asking, judging: Judging, has_frame: bool):
        self._job = job
        self._settings: EvalSettings = job.eval
        self._asking = asking
        self._judging = judging
        self._has_frame = has_frame
        self._cases = CaseReader(job.eval)
        self._judged_by = json.dumps(job.eval.judging(), sort_keys=True)

    def take(self, row: Row) -> InFlight:
        """Prepare a row and make its requests.

        Raises:
            RequestError: the row cannot be done.
        """
        row.case = Case()
        try:
            self._prepare(row)
            return self._asking.take(row)
        finally:
            if self._settings.whole_file and row.columns is not None:
                # the text went to the engine; the lines name the file
                row.columns = {"file": row.columns["file"]}

    def serve(self, requests: Iterator[Any]) -> Iterator[tuple[InFlight, Any]]:
        """Have the engine do requests, and give each row with its answer as it ends."""
        return self._asking.serve(requests)

    def result(self, row: Row, answer: Any) -> Result:
        """Judge an answer.

        Raises:
            RequestError: the engine refused the row.
        """
        lines, tokens = self._asking.lines(row, answer)
        result = self._judged(row, lines)
        result.num_prompt_tokens, result.num_completion_tokens, result.num_cached_tokens = tokens
        return result

    def refused(self, row: Row, error: RequestError) -> Result:
        """Make the result of a row that cannot be done."""
        status = refused_status(error, self._job.on_overlong == "skip")
        line = line_head(row)
        line["finish_reason"] = status
        line["error"] = _error(error)
        case = row.case or Case()
        line.update(target=case.target, extracted=None, scores={})
        return Result(row.index, status, [json_text.dumps(_ordered(line, row, case))], error.code)

    def digest(self, row: Row) -> str:
        """Name what the lines of a row repeat or follow from besides the answer."""
        return row_digest(row, self._judged_by)

    def moved(self, row: Row, lines: list[str]) -> Result | None:
        """Judge a kept answer anew; None when it does not hold all that is judged."""
        values = [json.loads(line) for line in lines]
        if not self._judging.suffices(values):
            return None
        for line in values:
            line.update(index=row.index, error=None)
            if "cached_tokens" in line["usage"]:
                line["usage"]["cached_tokens"] = row.num_cached_tokens
            for key in _JUDGED:
                line.pop(key, None)
        return self._judged(row, values)

    def _prepare(self, row: Row) -> None:
        row.call = None  # the result lines are an evaluation's, whatever the input was
        if row.error is not None:
            if row.columns is not None and self._settings.group is not None:
                self._try_group(row)
            raise row.error
        prompt = row.prompt
        if isinstance(prompt.value, str):
            prompt.text = prompt.value
        if prompt.text is None and self._has_frame:
            raise RequestError(
                "invalid_prompt", f"{row.place}: eval.few_shot, gen_prefix and description need a prompt that is text"
            )
        row.case.prompt = prompt.text
        row.case.prompt_hash = _prompt_hash(prompt)
        try:
            self._cases.read(row.case, row.columns)
        except RequestError as error:
            raise RequestError(error.code, f"{row.place}: {error.message}", error.retryable) from None
        if self._settings.whole_file:
            row.case.prompt = None

    def _try_group(self, row: Row) -> None:
        try:
            self._cases.read_group(row.case, row.columns)
        except RequestError:
            pass  # the row has an error already

    def _judged(self, row: Row, lines: list[dict[str, Any]]) -> Result:
        error = None
        try:
            self._judging.judge(lines, row.case)
        except RequestError as problem:
            error = problem
            for line in lines:
                line.update(target=row.case.target, extracted=None, scores={}, error=_error(problem))
        texts = [json_text.dumps(_ordered(line, row, row.case)) for line in lines]
        return Result(row.index, "ok" if error is None else "error", texts, None if error is None else error.code)


def _ordered(line: dict[str, Any], row: Row, case: Case) -> dict[str, Any]:
    line.update(prompt=case.prompt, prompt_hash=case.prompt_hash, group=case.group)
    last = {key: line.pop(key) for key in (*_JUDGED, *_ANSWER) if key in line}
    line.pop("row", None)
    return {**line, **last, "row": row.columns}


def _error(error: RequestError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "retryable": error.retryable}


def _prompt_hash(prompt: Any) -> str:
    text = json.dumps(prompt.value["prompt_token_ids"]) if prompt.text is None else prompt.text
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
