"""The task perplexity: how well the model predicts texts, each token of them scored once in rolling windows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from jobs.evaluation.cases import Case
from jobs.fingerprint import Fingerprints
from jobs.job_file import Job
from jobs.result_lines import line_head
from jobs.rows import Row
from jobs.work import InFlight
from nanovllm import ScoreRequest


class AskForText:
    """Asks how likely a text is by itself.

    Args:
        job: the job.
        llm: the loaded model.
    """

    def __init__(self, job: Job, llm: Any):
        self._llm = llm
        self._fingerprints = Fingerprints(llm, job)

    def take(self, row: Row) -> InFlight:
        """Make the request of a row."""
        text = row.prompt.value
        fingerprint = self._fingerprints.of_scored(text, None, is_chat=False, depends_on_length=True)
        row.prompt = None  # the engine has it now
        flight = InFlight(row, fingerprint)
        flight.requests.append(ScoreRequest(text, None, flight))
        return flight

    def serve(self, requests: Iterator[Any]) -> Iterator[tuple[InFlight, Any]]:
        """Have the engine do requests, and give each row with its answer as it ends."""
        with contextlib.closing(self._llm.score_iter(requests)) as scored:
            for one in scored:
                yield one.request.data, one.perplexity

    def lines(self, row: Row, answer: Any) -> tuple[list[dict[str, Any]], tuple[int, int, int]]:
        """Give the line of an answer, and its prompt, completion and cached tokens.

        Raises:
            RequestError: the text was refused.
        """
        if answer.error is not None:
            raise answer.error
        line = line_head(row)
        line["finish_reason"] = "stop"
        line["usage"] = {"prompt_tokens": answer.num_tokens, "completion_tokens": 0}
        line.update(
            logprob=answer.logprob,
            num_tokens=answer.num_tokens,
            num_words=answer.num_words,
            num_bytes=answer.num_bytes,
        )
        return [line], (answer.num_tokens, 0, 0)


class JudgeText:
    """There is nothing to judge in a row: perplexities are of all texts together."""

    def suffices(self, lines: list[dict[str, Any]]) -> bool:
        """Whether kept lines hold all that is judged: always."""
        return True

    def judge(self, lines: list[dict[str, Any]], case: Case) -> None:
        """Leave target and scores empty."""
        for line in lines:
            line.update(target=None, extracted=None, scores={})
