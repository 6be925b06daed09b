"""What a job asks of the model for each row, and the result lines that come of the answer.

Owns completions, the work of a generation job; an evaluation has a work of its own with the same methods, and here is
chosen between the two. Knows neither the journal nor what runs beside a row.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jobs import json_text
from jobs.fingerprint import Fingerprints, row_digest
from jobs.job_file import Job
from jobs.openai_batch.responses import prompt_details
from jobs.overlong import fit_prompt
from jobs.prompts import PromptBuilder
from jobs.result_lines import Result, answered, refused
from jobs.rows import Row, sampling_of
from jobs.run_directory import RunDirectory
from nanovllm import Request, RequestError


@dataclass(slots=True)
class InFlight:
    """A row in the engine.

    Attributes:
        fingerprint: names all that the answer is a function of.
        requests: what the engine is to do for it.
        taken_at: when it was admitted.
        answers: what came back so far, by the number of the request, where a row has several.
    """

    row: Row
    fingerprint: str
    requests: list[Any] = field(default_factory=list)
    taken_at: float = 0.0
    answers: dict[int, Any] = field(default_factory=dict)


class Beginnings:
    """Counts what a prompt shares with the prompt of the row before it: the `cached_tokens` of its result.

    What really came out of the prefix cache depends on what else ran just then, and on where a run was broken off; the
    bytes of the results must not, so that sum is in the manifest. This count depends on the rows alone.

    Args:
        block: tokens that are shared at once; 0 when nothing is.
    """

    def __init__(self, block: int):
        self._block = block
        self._before: list[int] = []
        self._index = -1

    def count(self, index: int, ids: list[int]) -> int:
        """Return the tokens of the whole blocks that both begin with, short of the last token.

        A row that comes after one without a prompt shares nothing.
        """
        before, self._before = self._before if index == self._index + 1 else [], ids
        self._index = index
        if not self._block:
            return 0
        most = min(len(before), len(ids) - 1) // self._block * self._block
        shared = 0
        while shared < most and before[shared : shared + self._block] == ids[shared : shared + self._block]:
            shared += self._block
        return shared


class Completions:
    """The work of a generation job: a row's prompt is completed.

    Args:
        job: the job.
        llm: the loaded model.
        sampling: the job's sampling parameters over their defaults.
    """

    def __init__(self, job: Job, llm: Any, sampling: Any):
        self._job = job
        self._llm = llm
        self._sampling = sampling
        self._fingerprints = Fingerprints(llm, job)
        self._beginnings = Beginnings(llm.num_shareable_tokens)

    def take(self, row: Row) -> InFlight:
        """Make the requests of a row.

        Raises:
            RequestError: the row cannot be done.
        """
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
        fingerprint = self._fingerprints.of(row, prompt["prompt_token_ids"], sampling)
        row.num_cached_tokens = self._beginnings.count(row.index, prompt["prompt_token_ids"])
        row.prompt = None  # the engine has it now; a row in flight holds its columns alone
        flight = InFlight(row, fingerprint)
        flight.requests.append(Request(prompt=prompt, sampling_params=sampling, request_id=row.id, data=flight))
        return flight

    def serve(self, requests: Iterator[Any]) -> Iterator[tuple[InFlight, Any]]:
        """Have the engine do requests, and give each row with its answer as it ends."""
        # closed when the pass breaks off, so that the engine drops what is in flight
        with contextlib.closing(self._llm.generate_iter(requests)) as outputs:
            for output in outputs:
                yield output.data, output

    def result(self, row: Row, answer: Any) -> Result:
        """Make the result of a row.

        Raises:
            RequestError: the engine refused it.
        """
        if answer.error is not None:
            raise answer.error
        return answered(row, answer)

    def refused(self, row: Row, error: RequestError) -> Result:
        """Make the result of a row that cannot be done."""
        return refused(row, error, skip_overlong=self._job.on_overlong == "skip")

    def digest(self, row: Row) -> str:
        """Name what the lines of a row repeat or follow from besides the answer."""
        return row_digest(row)

    def moved(self, row: Row, lines: list[str]) -> Result | None:
        """Make the result of a row anew whose answer is kept and whose digest has changed.

        Args:
            row: the row as it is now.
            lines: its lines as they were kept.

        Returns:
            The result without its costs; None when what was kept is not enough.
        """
        return Result(row.index, "ok", [_moved(line, row) for line in lines])


def prompt_builder(job: Job) -> PromptBuilder:
    """Make what makes a job's prompts, of an evaluation with its examples.

    Raises:
        ConfigError: a template is not valid Jinja, or there are too few examples.
    """
    if job.eval is None:
        return PromptBuilder(job.prompt)
    from jobs.evaluation.evaluation import evaluation_prompts

    return evaluation_prompts(job)


def default_sampling(job: Job, of_model: Any) -> Any:
    """Give the sampling parameters that a job's own go over: those of the model, or of evaluations."""
    if job.eval is None:
        return of_model
    from jobs.evaluation.evaluation import evaluation_sampling

    return evaluation_sampling(job)


def make_work(job: Job, llm: Any, sampling: Any, prompts: Any) -> Any:
    """Make the work of a job over the loaded model."""
    if job.eval is None:
        return Completions(job, llm, sampling)
    from jobs.evaluation.evaluation import evaluation_work

    return evaluation_work(job, llm, sampling, prompts)


def make_ending(job: Job, directory: RunDirectory) -> Any:
    """Make what an evaluation ends with, its scores and their verdict; None for a generation job.

    Raises:
        ConfigError: the gate compares with a run that is not there.
    """
    if job.eval is None:
        return None
    from jobs.evaluation.ending import Ending

    return Ending(job, directory)


def _moved(line: str, row: Row) -> str:
    values = json.loads(line)
    if "row" in values:
        values.update(index=row.index, row=row.columns)
        values["usage"]["cached_tokens"] = row.num_cached_tokens
    else:  # the answer to a line of an OpenAI batch, which repeats nothing else of the row
        values["response"]["body"]["usage"]["prompt_tokens_details"] = prompt_details(row.num_cached_tokens)
    return json_text.dumps(values)
