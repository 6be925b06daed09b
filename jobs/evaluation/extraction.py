"""From the text of a model to the answer in it: thinking cut off, then a pipeline of steps that a job file lists.

Owns the reading and the order of steps. Knows neither rows nor scorers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from jobs.evaluation.extraction_steps import STEPS
from jobs.evaluation.scorers.options import check_value, read_options
from jobs.evaluation.scorers.patterns import compile_pattern
from jobs.evaluation.scorers.wording import show
from jobs.evaluation.voting import maj_at_k, majority_vote, pass_at_k
from jobs.names import suggest
from nanovllm import ConfigError

__all__ = ["Pipeline", "maj_at_k", "majority_vote", "pass_at_k", "strip_thinking"]


@dataclass(frozen=True)
class Pipeline:
    """Steps that run one after another until one of them finds nothing.

    Attributes:
        steps: functions from a text to a text or None.
    """

    steps: tuple[Callable[[str], str | None], ...] = ()

    @classmethod
    def from_settings(cls, steps: list[Any] | None, place: str) -> Pipeline:
        """Make a pipeline of a job file's list; no list is a pipeline that gives the text back.

        Args:
            steps: names, or mappings of a name to its argument with options beside it.
            place: where the list stands, for messages.

        Raises:
            ConfigError: there is no such step or option, or a value is wrong.
        """
        if steps is None:
            return cls()
        if not isinstance(steps, list):
            raise ConfigError(f"{place} is {show(steps)}, expected a list of steps: write [{steps}]")
        return cls(tuple(_read_step(step, f"{place}, step {index}") for index, step in enumerate(steps, start=1)))

    def __call__(self, text: str) -> str | None:
        """Extract the answer of a text; None where a step found nothing.

        Raises:
            RequestError: a pattern took too long.
        """
        answer: str | None = text
        for step in self.steps:
            if answer is None:
                break
            answer = step(answer)
        return answer


def strip_thinking(text: str, start: str = "<think>", end: str = "</think>", is_open: bool = False) -> str:
    """Cut off what a reasoning model thinks before it answers.

    The answer is what follows the last `end`, as in lm-evaluation-harness, whether or not the text itself has the
    `start`, which some chat templates put into the prompt. Thinking that is never closed lasts to the end of the text.

    Args:
        text: what the model wrote.
        start: what begins its thinking.
        end: what ends it.
        is_open: whether the prompt ended inside the thinking; a text without `end` is then all thinking.
    """
    _, closed, answer = text.rpartition(end)
    if not closed and is_open:
        return ""
    answer, opened, _ = answer.partition(start)
    return answer.lstrip() if closed or opened else answer


def _read_step(step: Any, place: str) -> Callable[[str], str | None]:
    name, argument, values = _split(step, place)
    info = STEPS[name]
    options = read_options(values, info.options, name, place)
    if argument is None:
        if info.needs_argument:
            raise ConfigError(f"{place}: {name} needs a value, {info.argument.expected}, as in {{{name}: …}}")
        return partial(info.function, **options)
    if info.argument is None:
        raise ConfigError(f"{place}: {name} takes no value: write {name} alone")
    check_value(argument, info.argument, name, place)
    if name == "regex":
        _check_group(argument, options.get("group"), place)
    return partial(_with_argument, info.function, argument, options)


def _with_argument(
    function: Callable[..., str | None], argument: Any, options: dict[str, Any], text: str
) -> str | None:
    return function(text, argument, **options)


def _split(step: Any, place: str) -> tuple[str, Any, dict[str, Any]]:
    """Take a step apart into its name, its argument and the options beside it."""
    if isinstance(step, str):
        step = {step: None}
    if not isinstance(step, dict) or not step or not all(isinstance(key, str) for key in step):
        raise ConfigError(f"{place} is {show(step)}, expected a step's name, or its name with a value")
    names = [key for key in step if key in STEPS]
    if not names:
        wrong = next(iter(step))
        raise ConfigError(f"{place}: there is no step {wrong!r}: {suggest(wrong, STEPS)}")
    if len(names) > 1:
        raise ConfigError(f"{place} names the steps {' and '.join(names)}: write each as an item of the list")
    return names[0], step[names[0]], {key: value for key, value in step.items() if key != names[0]}


def _check_group(pattern: str, group: int | str | None, place: str) -> None:
    compiled = compile_pattern(pattern)
    if isinstance(group, int) and group > compiled.groups:
        raise ConfigError(f"{place}: regex.group is {group}, but the pattern has {compiled.groups} groups")
    if isinstance(group, str) and group not in compiled.groupindex:
        known = suggest(group, compiled.groupindex) if compiled.groupindex else "it names none, as (?P<name>…) would"
        raise ConfigError(f"{place}: regex.group is {group!r}, which the pattern does not name: {known}")
