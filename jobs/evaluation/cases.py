"""What an evaluation knows of a row besides its prompt: the target, the choices, the group.

Owns how a target names choices. A row whose columns do not fit is a RequestError, which becomes the row's error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jobs.evaluation.columns import ChoicesField, Field
from jobs.evaluation.settings import EvalSettings
from nanovllm import RequestError


@dataclass(slots=True)
class Case:
    """One row of an evaluation.

    Attributes:
        target: as the row has it; None where the task needs none.
        choices: the texts to choose from or to score.
        gold: indexes of the choices that the target names.
        group: what rows that depend on each other share.
        prompt: the rendered prompt as text; None for one of token ids, and for a whole file.
        prompt_hash: names it.
    """

    target: Any = None
    choices: list[str] = field(default_factory=list)
    gold: list[int] = field(default_factory=list)
    group: str | None = None
    prompt: str | None = None
    prompt_hash: str | None = None


class CaseReader:
    """Reads the cases of one evaluation.

    Raises:
        ConfigError: a template is not valid Jinja.
    """

    def __init__(self, settings: EvalSettings):
        self._target = None if settings.target is None else Field(settings.target, "eval.target")
        self._choices = None if settings.choices is None else ChoicesField(settings.choices)
        self._group = None if settings.group is None else Field(settings.group, "eval.group")
        self._needs_gold = settings.task in ("multiple_choice", "rank")
        self._is_single = settings.task == "score" and settings.choices is None

    def read(self, case: Case, columns: dict[str, Any]) -> None:
        """Fill in what the columns say.

        Raises:
            RequestError: a column is missing, or says nothing that can be used.
        """
        self.read_group(case, columns)
        if self._choices is not None:
            case.choices = self._choices.value(columns)
        if self._target is not None:
            case.target = self._target.value(columns)
        if self._needs_gold:
            case.gold = resolve_target(case.target, case.choices)
        if self._is_single:
            case.choices = [self._target.text(columns)]
            if not case.choices[0]:
                raise RequestError("invalid_target", "eval.target is empty: there is nothing to score")

    def read_group(self, case: Case, columns: dict[str, Any]) -> None:
        """Fill in the group alone.

        Raises:
            RequestError: the column is missing.
        """
        if self._group is not None:
            case.group = self._group.text(columns)

    def answer(self, columns: dict[str, Any]) -> str:
        """Give the right answer of a row as text, as an example shows it.

        Raises:
            RequestError: a column is missing, or says nothing that can be used.
        """
        if not self._needs_gold:
            value = self._target.value(columns)
            is_listed = isinstance(value, list) and value and isinstance(value[0], str)
            return value[0] if is_listed else self._target.text(columns)
        choices = self._choices.value(columns)
        return choices[resolve_target(self._target.value(columns), choices)[0]]


def resolve_target(target: Any, choices: list[str]) -> list[int]:
    """Give the indexes of the choices that a target names: by index, text or letter, or a list of these.

    A text that equals a choice names it; else a single letter counts from A, and digits are an index from 0.

    Raises:
        RequestError: it names none.
    """
    items = target if isinstance(target, list) else [target]
    gold = [_resolve(item, choices) for item in items]
    if not gold:
        raise RequestError("invalid_target", "eval.target is an empty list: it must name at least one choice")
    return gold


def _resolve(item: Any, choices: list[str]) -> int:
    index = None
    if isinstance(item, int) and not isinstance(item, bool):
        index = item
    elif isinstance(item, str):
        text = item.strip()
        if item in choices:
            index = choices.index(item)
        elif text in choices:
            index = choices.index(text)
        elif len(text) == 1 and text.isascii() and text.isalpha():
            index = ord(text.upper()) - ord("A")
        elif text.isascii() and text.isdecimal() and len(text) < 10:
            index = int(text)
    if index is None or not 0 <= index < len(choices):
        shown = repr(item) if len(repr(item)) <= 60 else repr(item)[:57] + "..."
        raise RequestError(
            "invalid_target",
            f"eval.target is {shown}, which is no text, index or letter of one of the {len(choices)} choices",
        )
    return index
