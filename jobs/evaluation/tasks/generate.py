"""The task generate: the model completes, an answer is extracted, scorers compare it with the target.

A metric of a row is the mean over its lines: what concerns all samples together (a vote, pass@k) stands in each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobs.evaluation.cases import Case
from jobs.evaluation.extraction import Pipeline, maj_at_k, majority_vote, pass_at_k, strip_thinking
from jobs.evaluation.metrics import scorers_of
from jobs.evaluation.settings import EvalSettings
from jobs.result_lines import completion_lines
from jobs.rows import Row
from jobs.work import Completions
from nanovllm import RequestError

_RIGHT = 1.0
"""The score of an answer that counts as right where answers are counted."""


class AskForCompletions(Completions):
    """Asks for completions, as a generation job does."""

    def lines(self, row: Row, answer: Any) -> tuple[list[dict[str, Any]], tuple[int, int, int]]:
        """Give the lines of an answer, and its prompt, completion and cached tokens.

        Raises:
            RequestError: the engine refused the row.
        """
        result = self.result(row, answer)
        tokens = (result.num_prompt_tokens, result.num_completion_tokens, result.num_cached_tokens)
        return completion_lines(row, answer), tokens


class JudgeCompletions:
    """Judges completions.

    Raises:
        ConfigError: a step or a scorer cannot be made.
    """

    def __init__(self, settings: EvalSettings):
        self._settings = settings
        self._extract = _pipeline(settings.extract, "eval.extract") or str.strip
        self._extract_target = _pipeline(settings.target_extract, "eval.target_extract")
        self._scorers = scorers_of(settings)

    def suffices(self, lines: list[dict[str, Any]]) -> bool:
        """Whether kept lines hold all that is judged: the texts, which they always do."""
        return True

    def judge(self, lines: list[dict[str, Any]], case: Case) -> None:
        """Set target, extracted and scores in the lines of one row.

        Raises:
            RequestError: the target is nothing that can be compared with.
        """
        target = self._target(case.target)
        answers = [self._answer(line["text"], case.prompt or "") for line in lines]
        scores = [self._scores(answer, target) for answer in answers]
        shared = self._shared(answers, scores, target, [line["id"] for line in lines])
        voted = majority_vote(answers) if self._settings.vote else None
        for line, answer, own in zip(lines, answers, scores, strict=True):
            line["target"] = target
            line["extracted"] = answer
            if self._settings.vote:
                line["voted"] = voted
                own = self._scores(voted, target)
            line["scores"] = {**own, **shared}

    def _target(self, target: Any) -> Any:
        if isinstance(target, bool):
            target = "true" if target else "false"
        if self._extract_target is None:
            return target
        items = target if isinstance(target, list) else [target]
        found = [self._extract_target(item if isinstance(item, str) else str(item)) for item in items]
        if any(item is None for item in found):
            raise RequestError("invalid_target", "eval.target_extract finds nothing in the target")
        return found if isinstance(target, list) else found[0]

    def _answer(self, text: str, prompt: str) -> str | None:
        if self._settings.thinking is not None:
            start, end = self._settings.thinking
            text = strip_thinking(text, start, end, is_open=prompt.rstrip().endswith(start))
        return self._extract(text)

    def _scores(self, answer: str | None, target: Any) -> dict[str, float]:
        return {scorer.name: float(scorer(answer, target)) for scorer in self._scorers}

    def _shared(
        self, answers: list[str | None], scores: list[dict[str, float]], target: Any, ids: list[str]
    ) -> dict[str, float]:
        """Give the scores that concern all samples; the first scorer says which are right."""
        first = self._scorers[0]
        num = len(answers)
        largest = max((*self._settings.pass_at_k, *self._settings.maj_at_k), default=0)
        if largest > num:
            raise RequestError("too_few_samples", f"{largest} samples are asked for, and the row {ids[0]} has {num}")
        right = sum(one[first.name] >= _RIGHT for one in scores)
        shared = {f"pass@{k}": float(pass_at_k(num, right, k)) for k in self._settings.pass_at_k}
        for k in self._settings.maj_at_k:
            shared[f"maj@{k}"] = float(first(maj_at_k(answers, k), target))
        return shared


def _pipeline(steps: list[Any] | None, place: str) -> Callable[[str], str | None] | None:
    return None if steps is None else Pipeline.from_settings(steps, place)
