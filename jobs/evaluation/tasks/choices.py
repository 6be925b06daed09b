"""The tasks over given continuations: multiple_choice, rank and score. The model only says how likely each is.

Owns what is scored and how likelihoods become accuracy; the numbers are those of lm-evaluation-harness: a choice is
scored with the delimiter before it and measured without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from jobs.evaluation.cases import Case
from jobs.evaluation.settings import EvalSettings
from jobs.fingerprint import Fingerprints
from jobs.job_file import Job
from jobs.prompts import Prompt
from jobs.result_lines import line_head
from jobs.rows import Row
from jobs.work import InFlight
from nanovllm import ScoreRequest

UNCONDITIONAL = "logprob_unconditional"
"""Key of a choice's log likelihood after nothing, in `choices` of a line."""


class AskForLikelihoods:
    """Asks how likely continuations are after the prompt, and where needed after nothing.

    Args:
        job: the job.
        llm: the loaded model.
        delimiter: what stands between prompt and continuation.
    """

    def __init__(self, job: Job, llm: Any, delimiter: str):
        self._llm = llm
        self._delimiter = delimiter
        self._truncates = job.on_overlong == "truncate_left"
        self._needs_unconditional = "acc_mutual_info" in job.eval.metrics
        self._fingerprints = Fingerprints(llm, job)

    def take(self, row: Row) -> InFlight:
        """Make the requests of a row."""
        continuations = [self._delimiter + choice for choice in row.case.choices]
        prompt = _scored_prompt(row.prompt, self._llm.tokenizer)
        fingerprint = self._fingerprints.of_scored(prompt, continuations, row.prompt.is_chat, self._truncates)
        row.prompt = None  # the engine has it now
        flight = InFlight(row, fingerprint)
        asked = [prompt, ""] if self._needs_unconditional else [prompt]
        flight.requests = [
            ScoreRequest(one, list(continuations), (flight, part), truncate=self._truncates)
            for part, one in enumerate(asked)
        ]
        return flight

    def serve(self, requests: Iterator[Any]) -> Iterator[tuple[InFlight, Any]]:
        """Have the engine do requests, and give each row with its answers when the last of them has ended."""
        with contextlib.closing(self._llm.score_iter(requests)) as scored:
            for one in scored:
                flight, part = one.request.data
                flight.answers[part] = one.outputs
                if len(flight.answers) == len(flight.requests):
                    yield flight, [flight.answers[i] for i in range(len(flight.answers))]

    def lines(self, row: Row, answer: Any) -> tuple[list[dict[str, Any]], tuple[int, int, int]]:
        """Give the line of an answer, and its prompt, completion and cached tokens.

        Raises:
            RequestError: a pair was refused.
        """
        for outputs in answer:
            for output in outputs:
                if output.error is not None:
                    raise output.error
        choices = [
            {
                "text": text,
                "logprob": output.logprob,
                "num_tokens": len(output.token_ids),
                "is_greedy": bool(output.is_greedy),
            }
            for text, output in zip(row.case.choices, answer[0], strict=True)
        ]
        for outputs in answer[1:]:
            for choice, output in zip(choices, outputs, strict=True):
                choice[UNCONDITIONAL] = output.logprob
        num_prompt_tokens = max(len(output.prompt_token_ids) for output in answer[0])
        line = line_head(row)
        line["finish_reason"] = "stop"
        line["usage"] = {"prompt_tokens": num_prompt_tokens, "completion_tokens": 0}
        num_cut_tokens = max(output.num_truncated for output in answer[0])
        if num_cut_tokens:
            line["num_cut_tokens"] = num_cut_tokens
        line["choices"] = choices
        return [line], (num_prompt_tokens, 0, 0)


class JudgeLikelihoods:
    """Judges which continuation is the likeliest."""

    def __init__(self, settings: EvalSettings):
        self._settings = settings

    def suffices(self, lines: list[dict[str, Any]]) -> bool:
        """Whether kept lines hold all that is judged."""
        if "acc_mutual_info" not in self._settings.metrics:
            return True
        return all(UNCONDITIONAL in choice for line in lines for choice in line["choices"])

    def judge(self, lines: list[dict[str, Any]], case: Case) -> None:
        """Set text, target, extracted and scores in the line of one row."""
        (line,) = lines
        choices = line["choices"]
        if "acc_mutual_info" not in self._settings.metrics:
            for choice in choices:
                choice.pop(UNCONDITIONAL, None)
        best = _best([choice["logprob"] for choice in choices])
        line["text"] = choices[best]["text"]
        line["target"] = case.target
        line["extracted"] = best
        line["scores"] = self._scores(choices, case, best)

    def _scores(self, choices: list[dict[str, Any]], case: Case, best: int) -> dict[str, float]:
        if self._settings.task == "rank":
            rank = min(_rank([choice["logprob"] for choice in choices], index) for index in case.gold)
            return {"reciprocal_rank": 1 / rank, "hit_at_1": float(rank == 1)}
        if self._settings.task == "score":
            return {} if self._settings.choices is not None else {"acc": float(choices[0]["is_greedy"])}
        return {metric: float(_best(_measured(choices, metric)) in case.gold) for metric in self._settings.metrics}


def _measured(choices: list[dict[str, Any]], metric: str) -> list[float]:
    """Give by what an accuracy compares the choices."""
    if metric == "acc":
        return [choice["logprob"] for choice in choices]
    if metric == "acc_norm":
        return [choice["logprob"] / len(choice["text"]) for choice in choices]
    if metric == "acc_bytes":
        return [choice["logprob"] / len(choice["text"].encode("utf-8")) for choice in choices]
    if metric == "acc_tokens":
        return [choice["logprob"] / choice["num_tokens"] for choice in choices]
    return [choice["logprob"] - choice[UNCONDITIONAL] for choice in choices]


def _best(values: list[float]) -> int:
    """Give the place of the largest value, the first of equal ones."""
    return max(range(len(values)), key=values.__getitem__)


def _rank(values: list[float], index: int) -> int:
    """Give the place of one value from the largest, from 1; of equal ones the first comes first."""
    before = sum(value == values[index] for value in values[:index])
    return 1 + before + sum(value > values[index] for value in values)


def _scored_prompt(prompt: Prompt, tokenizer: Any) -> Any:
    """Give a prompt in the form that continuations are scored after: text, so that both are encoded together.

    A rendered chat without the BOS that the tokenizer would add goes as ids: the template has the last word on it.
    """
    if prompt.text is None:
        return prompt.value
    if prompt.is_chat and tokenizer.adds_bos and not tokenizer.starts_with_bos(prompt.text):
        return prompt.value
    return prompt.text
