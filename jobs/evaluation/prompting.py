"""Prompts of an evaluation: the row's own question behind solved examples, before the beginning of the answer.

Owns how these are joined, as text and as turns of a chat; delimiters stand where lm-evaluation-harness puts them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jobs.evaluation.cases import CaseReader
from jobs.evaluation.columns import Field
from jobs.evaluation.few_shot import Example, FewShot
from jobs.evaluation.settings import EvalSettings
from jobs.job_file import PromptSettings
from jobs.prompts import Prompt, PromptBuilder, PromptTemplate
from nanovllm import RequestError


class EvaluationPrompts(PromptBuilder):
    """Makes the prompts of one evaluation.

    Args:
        settings: the `prompt:` section.
        evaluation: the `eval:` section.
        few_shot: the examples, or None.

    Raises:
        ConfigError: a template is not valid Jinja.
    """

    def __init__(self, settings: PromptSettings, evaluation: EvalSettings, few_shot: FewShot | None):
        super().__init__(settings)
        self._evaluation = evaluation
        self._few_shot = few_shot
        self._as_turns = few_shot is not None and evaluation.few_shot.form != "text"

    @property
    def continuation_delimiter(self) -> str:
        """What stands between a prompt and a choice."""
        prefix = self._evaluation.gen_prefix
        if self._settings.chat and (not prefix or prefix[-1].isspace()):
            return ""
        return self._evaluation.target_delimiter

    @property
    def has_frame(self) -> bool:
        """Whether something is put around a row's own question, which must then be text."""
        evaluation = self._evaluation
        return bool(self._few_shot or evaluation.gen_prefix or evaluation.description)

    def chat(self, messages: list[Any], options: dict[str, Any]) -> Prompt:
        """Make the prompt of a conversation that a row brings; arguments and errors as in `PromptBuilder.chat`."""
        if self._few_shot is not None:
            raise RequestError("invalid_prompt", "eval.few_shot needs questions as text, and the row has 'messages'")
        return self._open(messages, options)

    def _open(self, messages: list[Any], options: dict[str, Any]) -> Prompt:
        prefix = self._evaluation.gen_prefix
        if prefix:
            messages = [*messages, {"role": "assistant", "content": prefix}]
            options = {**options, "add_generation_prompt": False, "continue_final_message": True}
        return super().chat(messages, options)

    def _frame(self, text: str) -> Prompt:
        examples = self._few_shot.choose(text) if self._few_shot is not None else []
        if not self._settings.chat:
            whole = self._evaluation.description + self._joined(examples, text)
            prefix = self._evaluation.gen_prefix
            whole += self._before_prefix(text, self._evaluation.target_delimiter) + prefix
            return Prompt(whole, text=whole)
        if self._as_turns:
            messages = [turn for example in examples for turn in self._turns(example)]
            messages.append({"role": "user", "content": text})
        else:
            messages = [{"role": "user", "content": self._joined(examples, text)}]
        if self._settings.system is not None:
            messages.insert(0, {"role": "system", "content": self._settings.system})
        return self._open(messages, {})

    def _turns(self, example: Example) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": example.question},
            {"role": "assistant", "content": self._answer(example)},
        ]

    def _joined(self, examples: list[Example], text: str) -> str:
        settings = self._evaluation.few_shot
        parts = []
        for example in examples:
            delimiter = settings.target_delimiter
            if self._evaluation.gen_prefix:
                delimiter = self._before_prefix(example.question, delimiter)
            parts.append(example.question + delimiter + self._answer(example) + settings.delimiter)
        return "".join(parts) + text

    def _answer(self, example: Example) -> str:
        prefix, answer = self._evaluation.gen_prefix, example.answer
        needs_space = prefix and answer and not prefix[-1].isspace() and not answer[0].isspace()
        return f"{prefix}{' ' if needs_space else ''}{answer}"

    def _before_prefix(self, question: str, delimiter: str) -> str:
        prefix = self._evaluation.gen_prefix
        if not prefix or not question or question[-1].isspace() or prefix[0].isspace():
            return ""
        return delimiter


class Solver:
    """Turns rows into examples.

    Args:
        settings: the `prompt:` section.
        evaluation: the `eval:` section, with few-shot settings.

    Raises:
        ConfigError: a template is not valid Jinja.
    """

    def __init__(self, settings: PromptSettings, evaluation: EvalSettings):
        few_shot = evaluation.few_shot
        self._asked = _Question(settings.template)
        self._shown = self._asked if few_shot.template is None else _Question(few_shot.template)
        if few_shot.target is not None:
            evaluation = dataclasses.replace(evaluation, task="generate", target=few_shot.target, choices=None)
        self._cases = CaseReader(evaluation)

    def __call__(self, columns: dict[str, Any]) -> tuple[str, Example]:
        """Give a row's question as a row of the evaluation asks it, and the example that it makes.

        Raises:
            RequestError: a column is missing, or says nothing that can be used.
        """
        shown = self._shown.text(columns)
        example = Example(shown, self._cases.answer(columns))
        if self._shown is self._asked:
            return shown, example
        try:
            return self._asked.text(columns), example
        except RequestError:  # a row of another kind, which no row of the evaluation can equal
            return shown, example


class _Question:
    def __init__(self, template: str | None):
        self._template = None if template is None else PromptTemplate(template)
        self._column = Field("prompt", "eval.few_shot")

    def text(self, columns: dict[str, Any]) -> str:
        if self._template is not None:
            return self._template.render(columns)
        return self._column.text(columns)
