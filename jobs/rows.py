"""Turn raw rows into requests of a job: id, prompt, sampling.

Owns what a row may say about itself, be it columns or a line of an OpenAI batch. A row that is wrong gets an error and
keeps its place; nothing here raises for a row's sake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs.job_file import Job
from jobs.openai_batch.calls import Call, CallReader, is_batch_line
from jobs.openai_batch.errors import CallRefused
from jobs.prompts import Prompt, PromptBuilder, refuse_lone_surrogates
from jobs.readers import RawRow
from jobs.row_ids import RowIds
from nanovllm import ConfigError, RequestError


@dataclass(slots=True)
class Row:
    """One row of a job.

    Attributes:
        index: position among all rows of the job, from 0.
        id: the row's own id, or its index.
        columns: the row as read; None when it could not be read.
        place: file and line, for messages.
        prompt: what goes to the engine; None with an error.
        sampling: the row's overrides.
        error: why the row cannot be done, or None.
        num_cut_tokens: prompt tokens that `on_overlong` removed.
        num_cached_tokens: prompt tokens that the prefix cache is there for (see `work.Beginnings`).
        returns_token_ids: whether its lines give the ids of prompt and completion.
        call: what an OpenAI-Batch line asks for; None for a row of columns.
        case: what an evaluation knows of the row besides its prompt; None in a generation job.
    """

    index: int
    id: str
    columns: dict[str, Any] | None
    place: str
    prompt: Prompt | None = None
    sampling: dict[str, Any] | None = None
    error: RequestError | None = None
    num_cut_tokens: int = 0
    num_cached_tokens: int = 0
    returns_token_ids: bool = False
    call: Call | None = None
    case: Any = None


class RowParser:
    """Parses the rows of one job in order, and remembers their ids.

    Args:
        prompts: makes the prompts.
        calls: reads OpenAI-Batch lines.
        returns_token_ids: whether the job asks for the ids of prompts and completions.
    """

    def __init__(self, prompts: PromptBuilder, calls: CallReader | None = None, returns_token_ids: bool = False):
        self._prompts = prompts
        self._returns_token_ids = returns_token_ids
        self._calls = calls or CallReader()
        self._ids = RowIds()

    def parse(self, index: int, raw: RawRow) -> Row:
        """Make a row of a raw row; what is wrong with it is its `error`."""
        columns = raw.value if isinstance(raw.value, dict) else None
        row = Row(index, str(index), None if raw.problem else columns, raw.place())
        row.returns_token_ids = self._returns_token_ids
        if not self._prompts.has_template and (raw.is_batch or is_batch_line(columns)):
            row.call = self._calls.begin(columns or {})
        try:
            if row.call is None:
                self._claim_id(row, columns or {}, raw)
            else:
                self._claim_custom_id(row, columns or {}, raw)
            if raw.problem is not None:
                raise RequestError("invalid_row", f"{raw.place()} {raw.problem}")
            if columns is None:
                raise RequestError("invalid_row", f"{raw.place()} is not an object with columns")
            row.sampling = _sampling(columns.get("sampling"))
            if row.call is None:
                row.prompt = self._prompts.build(columns)
            else:
                row.prompt, sampling = self._calls.read(row.call, columns, self._prompts)
                row.sampling = {**(row.sampling or {}), **sampling}
        except RequestError as error:
            row.error = with_place(error, row.place)
        return row

    def _claim_id(self, row: Row, columns: dict[str, Any], raw: RawRow) -> None:
        given = columns.get("id")
        if given is None or given == "":
            first = self._ids.claim_default(row.index)
        elif isinstance(given, str) or (isinstance(given, int) and not isinstance(given, bool)):
            row.id = str(given)
            first = self._ids.claim(row.id, raw.source, raw.line)
        else:
            self._ids.claim_default(row.index)
            raise RequestError("invalid_id", "the column 'id' must be text or an integer")
        if first is not None:
            raise RequestError("duplicate_id", f"the id {row.id!r} was used before, at {first}")

    def _claim_custom_id(self, row: Row, columns: dict[str, Any], raw: RawRow) -> None:
        given = columns.get("custom_id")
        if not isinstance(given, str) or not given:
            # The row's index stays its name in messages, and is not claimed: another line may be called so.
            if raw.problem is None and isinstance(raw.value, dict):
                raise RequestError("invalid_custom_id", "'custom_id' must be text, and not empty")
            return
        row.id = given
        first = self._ids.claim(given, raw.source, raw.line)
        if first is not None:
            raise RequestError("duplicate_id", f"the custom_id {given!r} was used before, at {first}")


def row_parser(job: Job, prompts: PromptBuilder) -> RowParser:
    """Make the parser of a job's rows."""
    calls = CallReader(job.model, job.sampling, job.served_model_name, job.return_token_ids)
    return RowParser(prompts, calls, job.return_token_ids)


def sampling_of(row: Row, base: Any) -> Any:
    """Give a row's sampling parameters over the job's.

    Raises:
        RequestError: `invalid_sampling`, naming the key.
    """
    try:
        return row_sampling(base, row.sampling, "the column 'sampling'" if row.call is None else "body")
    except RequestError as error:
        raise with_place(error, row.place) from None


def row_sampling(base: Any, overrides: dict[str, Any] | None, place: str = "the column 'sampling'") -> Any:
    """Put overrides over the job's sampling parameters; `place` says in messages where they stand.

    Raises:
        RequestError: `invalid_sampling`, naming the key.
    """
    from nanovllm import SamplingParams

    if not overrides:
        return base
    try:
        return SamplingParams.from_dict(overrides, base=base)
    except ConfigError as error:
        reason = str(error).removeprefix("sampling: ")
        raise RequestError("invalid_sampling", f"{place}: {reason}") from None


def _sampling(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise RequestError("invalid_sampling", "the column 'sampling' must be an object such as {\"max_tokens\": 8}")
    refuse_lone_surrogates(value, "sampling")
    return value


def with_place(error: RequestError, place: str) -> RequestError:
    """Begin an error's message with the row's file and line, if it does not."""
    message = error.message if error.message.startswith(place) else f"{place}: {error.message}"
    if isinstance(error, CallRefused):
        return CallRefused(error.code, message, error.param, error.retryable)
    return RequestError(error.code, message, error.retryable)
