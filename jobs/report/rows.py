"""One line of `results.jsonl`, generation, evaluation or OpenAI batch alike, as the report shows it.

Owns the shapes that a line may have. A value of another kind than expected, as in a file that somebody edited, is
shown as JSON or left out; it never breaks the page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jobs.evaluation.cases import resolve_target
from jobs.prompts import PROMPT_COLUMNS, PromptTemplate
from nanovllm import RequestError

# Keys of a line that have a place of their own on the page; whatever else a line holds is shown under its name.
_PLACED = {
    "id", "index", "sample", "text", "finish_reason", "stop_reason", "usage", "error", "row", "prompt", "target",
    "extracted", "scores", "group", "choices", "custom_id", "response",
}  # fmt: skip
# Long lists of numbers that nobody reads on a page.
_LEFT_OUT = {"token_ids", "logprobs", "prompt_logprobs"}


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice that a row was scored on."""

    text: str
    logprob: Any
    num_tokens: Any
    is_greedy: bool
    is_chosen: bool
    is_target: bool


@dataclass(slots=True)
class ReportRow:
    """A result line.

    Attributes:
        anchor: its name in the page's addresses.
        status: "ok", "error" or "skipped".
        prompt, output, target, extracted: as text; None when the line has none.
        is_judged: whether the line is of an evaluation, so that a missing extracted answer means something.
        details: everything else worth showing, by name.
    """

    id: str
    anchor: str
    index: int
    sample: int
    status: str = "ok"
    prompt: str | None = None
    output: str | None = None
    target: str | None = None
    extracted: str | None = None
    is_judged: bool = False
    scores: dict[str, float] = field(default_factory=dict)
    group: str | None = None
    choices: list[Choice] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    details: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells the row from all others of its run, and finds it in another run."""
        return f"{self.sample}:{self.id}"


class RowReader:
    """Turns result lines into rows.

    Args:
        template: source of the job's prompt template, which gives the prompt where a line does not hold it.
    """

    def __init__(self, template: str | None = None):
        self._render = _renderer(template)

    def read(self, values: dict[str, Any], number: int) -> Iterator[ReportRow]:
        """Give the rows of line `number` (from 0): one, or one for each choice of an OpenAI batch's line."""
        if "custom_id" in values and "response" in values:
            yield from _batch_rows(values, number)
        else:
            yield self._row(values, number)

    def _row(self, values: dict[str, Any], number: int) -> ReportRow:
        index = _count(values.get("index"), number)
        sample = _count(values.get("sample"), 0)
        row = ReportRow(str(values.get("id", index)), _anchor(index, sample), index, sample)
        columns = values["row"] if isinstance(values.get("row"), dict) else {}
        row.output = as_text(values.get("text"))
        row.finish_reason = as_text(values.get("finish_reason"))
        row.prompt = as_text(values["prompt"]) if "prompt" in values else self._render(columns)
        row.is_judged = "scores" in values
        row.target = as_text(values.get("target"))
        row.extracted = as_text(values.get("extracted"))
        row.scores = _numbers(values.get("scores"))
        row.group = as_text(values.get("group"))
        row.choices = list(_choices(values))
        _name_choices(row)
        _set_usage(row, values.get("usage"))
        if isinstance(values.get("error"), dict):
            _set_error(row, values["error"], "skipped" if row.finish_reason == "skipped" else "error")
        others = {name: value for name, value in values.items() if name not in _PLACED | _LEFT_OUT}
        others.update({f"row.{name}": value for name, value in columns.items() if name not in PROMPT_COLUMNS})
        row.details = {name: text for name, value in others.items() if (text := as_text(value))}
        return row


def as_text(value: Any) -> str | None:
    """Show a value: text as it is, anything else as JSON, null as None."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def conversation(messages: Any) -> str | None:
    """Show the messages of a chat under each other."""
    if not isinstance(messages, list):
        return None
    turns = [message if isinstance(message, dict) else {"content": message} for message in messages]
    return "\n\n".join(f"{as_text(turn.get('role')) or '?'}: {as_text(turn.get('content')) or ''}" for turn in turns)


def _renderer(template: str | None) -> Callable[[dict[str, Any]], str | None]:
    if template is not None:
        compiled = PromptTemplate(template)

        def render(columns: dict[str, Any]) -> str | None:
            try:
                return compiled.render(columns)
            except RequestError:
                return None  # the row's own error says why

        return render
    return _own_prompt


def _own_prompt(columns: dict[str, Any]) -> str | None:
    if columns.get("messages") is not None:
        return conversation(columns["messages"])
    return as_text(columns.get("prompt", columns.get("prompt_token_ids")))


def _batch_rows(values: dict[str, Any], number: int) -> Iterator[ReportRow]:
    response = values["response"] if isinstance(values["response"], dict) else {}
    body = response.get("body") if isinstance(response.get("body"), dict) else {}
    name = as_text(values.get("custom_id")) or as_text(values.get("id")) or str(number)
    error = values.get("error") or body.get("error")
    choices = body.get("choices")
    if isinstance(error, dict) or not isinstance(choices, list) or not choices:
        row = ReportRow(name, _anchor(number, 0), number, 0)
        _set_error(row, error if isinstance(error, dict) else {}, "error")
        yield row
        return
    for sample, choice in enumerate(choices):
        choice = choice if isinstance(choice, dict) else {}
        row = ReportRow(name, _anchor(number, sample), number, sample)
        message = choice.get("message")
        row.output = as_text(message.get("content") if isinstance(message, dict) else choice.get("text"))
        row.finish_reason = as_text(choice.get("finish_reason"))
        # the usage is that of all choices together
        _set_usage(row, body.get("usage") if len(choices) == 1 else None)
        yield row


def _choices(values: dict[str, Any]) -> Iterator[Choice]:
    choices = values.get("choices")
    found = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    texts = [as_text(choice.get("text")) or "" for choice in found]
    chosen, wanted = (_resolved(values.get(name), texts) for name in ("extracted", "target"))
    for i, choice in enumerate(found):
        numbers = choice.get("logprob"), choice.get("num_tokens")
        yield Choice(texts[i], *numbers, choice.get("is_greedy") is True, i in chosen, i in wanted)


def _resolved(target: Any, texts: list[str]) -> list[int]:
    try:
        return resolve_target(target, texts)
    except RequestError:
        return []


def _name_choices(row: ReportRow) -> None:
    """Write the texts of the choices behind what names them by index or letter."""
    for name, role in (("extracted", "is_chosen"), ("target", "is_target")):
        texts = [choice.text.strip() for choice in row.choices if getattr(choice, role)]
        shown = getattr(row, name)
        if texts and shown.strip() not in texts:
            setattr(row, name, f"{shown}: {'; '.join(texts)}")


def _anchor(index: int, sample: int) -> str:
    return f"row-{index}" if sample == 0 else f"row-{index}-{sample}"


def _set_usage(row: ReportRow, usage: Any) -> None:
    if isinstance(usage, dict):
        row.prompt_tokens = _count(usage.get("prompt_tokens"), None)
        row.completion_tokens = _count(usage.get("completion_tokens"), None)


def _set_error(row: ReportRow, error: dict[str, Any], status: str) -> None:
    row.status = status
    row.error_code = as_text(error.get("code")) or "unknown"
    row.error_message = as_text(error.get("message")) or ""


def _numbers(scores: Any) -> dict[str, float]:
    if not isinstance(scores, dict):
        return {}
    return {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}


def _count(value: Any, default: int | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default
