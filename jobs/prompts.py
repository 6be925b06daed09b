"""Turn a row's columns into the prompt of a request: text, or token ids.

Owns which column counts, the job's template, and how a chat is framed. The checkpoint's own chat template is the
tokenizer's affair. A prompt that cannot be made is a RequestError, which becomes the row's error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jobs import json_text
from jobs.job_file import PromptSettings
from nanovllm import ConfigError, NanovllmError, RequestError

PROMPT_COLUMNS = ("prompt", "prompt_token_ids", "messages")


@dataclass(slots=True)
class Chat:
    """A conversation before it is rendered.

    Attributes:
        messages: dicts with role and content.
        options: keyword arguments of `Tokenizer.encode_chat`.
    """

    messages: list[Any]
    options: dict[str, Any]


@dataclass(slots=True)
class Prompt:
    """What a row asks the model.

    Attributes:
        value: text, or {"prompt_token_ids": ids}, as `nanovllm.Request` takes it.
        chat: the conversation that it was rendered from, whose frame must stay whole; None for a raw prompt.
        text: the prompt as text; None where only ids are known.
    """

    value: Any
    chat: Chat | None = None
    text: str | None = None

    @property
    def is_chat(self) -> bool:
        """Whether it is a rendered chat."""
        return self.chat is not None


class PromptTemplate:
    """A Jinja template of a job, compiled once.

    Args:
        source: the template.
        name: the key of the job file that holds it, for messages.

    Raises:
        ConfigError: the template is not valid Jinja.
    """

    def __init__(self, source: str, name: str = "prompt.template"):
        self._name = name
        environment = ImmutableSandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_refuse_null
        )
        try:
            tree = environment.parse(source)
            self._columns = sorted(jinja2.meta.find_undeclared_variables(tree) - set(environment.globals))
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            where = "" if line is None else f", line {line} of the template"
            raise ConfigError(f"{name}{where}: {error}") from None

    def render(self, columns: dict[str, Any]) -> str:
        """Render one row.

        Raises:
            RequestError: `missing_column`, `invalid_text` or `template_error`.
        """
        try:
            text = self._template.render(columns)
        except jinja2.UndefinedError as error:
            missing = [column for column in self._columns if column not in columns]
            if missing:
                raise missing_column(self._name, missing[0], columns) from None
            raise RequestError("template_error", f"{self._name}: {error}") from None
        except Exception as error:  # a template can fail in any way that an expression can
            raise RequestError("template_error", f"{self._name}: {type(error).__name__}: {error}") from None
        if json_text.find_lone_surrogate(text) is not None:
            for column in self._columns:
                refuse_lone_surrogates(columns.get(column), column)
            refuse_lone_surrogates(text, "the rendered prompt")
        return text


class PromptBuilder:
    """Makes prompts as a job asks for them.

    Attributes:
        has_template: whether rows are plain columns for the job's template, whatever they are called.

    Raises:
        ConfigError: the job's template is not valid Jinja.
    """

    def __init__(self, settings: PromptSettings):
        self._settings = settings
        self._template = None if settings.template is None else PromptTemplate(settings.template)
        self.has_template = self._template is not None
        self._tokenizer: Any = None

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Take the model's tokenizer, which frames chats.

        Raises:
            ConfigError: the job asks for chats and the model has no chat template.
        """
        self._tokenizer = tokenizer
        if not self._settings.chat:
            return
        if not tokenizer.has_chat_template:
            cure = "set prompt.chat: false for raw completion, or give engine.chat_template"
            raise ConfigError(f"prompt.chat is true, but the model has no chat template: {cure}")
        tokenizer.compile_chat_templates()

    def ids(self, prompt: Prompt) -> list[int]:
        """Give the token ids of a prompt."""
        value = prompt.value
        return self._tokenizer.encode(value) if isinstance(value, str) else value["prompt_token_ids"]

    def build(self, columns: dict[str, Any]) -> Prompt:
        """Make the prompt of a row.

        Raises:
            RequestError: with a code and a sentence that names the column.
        """
        if self._template is not None:
            return self._frame(self._template.render(columns))
        given = [column for column in PROMPT_COLUMNS if columns.get(column) is not None]
        if not given:
            raise RequestError("no_prompt", _no_prompt(columns))
        if len(given) > 1:
            raise RequestError("ambiguous_prompt", f"the row has both {given[0]!r} and {given[1]!r}: keep one")
        if given == ["messages"]:
            refuse_lone_surrogates(columns["messages"], "messages")
            refuse_lone_surrogates(columns.get("tools"), "tools")
            if not isinstance(columns["messages"], list):
                found = _kind(columns["messages"])
                raise RequestError("invalid_prompt", f"the column 'messages' must be a list, found {found}")
            return self.chat(columns["messages"], {"tools": columns.get("tools")})
        if given == ["prompt_token_ids"]:
            return Prompt({"prompt_token_ids": _token_ids(columns["prompt_token_ids"])})
        prompt = columns["prompt"]
        if not isinstance(prompt, str):
            raise RequestError("invalid_prompt", f"the column 'prompt' must be text, found {_kind(prompt)}")
        refuse_lone_surrogates(prompt, "prompt")
        return self._frame(prompt)

    def _frame(self, text: str) -> Prompt:
        if not self._settings.chat:
            return Prompt(text, text=text)
        messages = [{"role": "user", "content": text}]
        if self._settings.system is not None:
            messages.insert(0, {"role": "system", "content": self._settings.system})
        return self.chat(messages, {})

    def chat(self, messages: list[Any], options: dict[str, Any]) -> Prompt:
        """Make the prompt of a conversation.

        Args:
            messages: dicts with role and content.
            options: keyword arguments of `Tokenizer.encode_chat`.

        Raises:
            RequestError: the chat template refuses the conversation.
        """
        options = {"add_generation_prompt": True, **options}
        try:
            text, ids = self._tokenizer.encode_chat(messages, **options)
        except RequestError:
            raise
        except NanovllmError as error:  # no chat template, or a broken one: only rows with messages meet it
            raise RequestError("template_error", str(error)) from None
        except RecursionError:
            raise RequestError("template_error", "the chat template is nested too deeply") from None
        return Prompt({"prompt_token_ids": ids}, Chat(messages, options), text)


def missing_column(name: str, column: str, columns: dict[str, Any]) -> RequestError:
    """Make the error for a row that lacks a column which the key `name` of the job file asks for."""
    has = ", ".join(columns) or "none"
    return RequestError("missing_column", f"{name} needs the column {column!r}; the row's columns are: {has}")


def refuse_lone_surrogates(value: Any, column: str) -> None:
    """Raise RequestError `invalid_text` if a text in `value` holds half of a surrogate pair."""
    if isinstance(value, str):
        position = json_text.find_lone_surrogate(value)
        if position is not None:
            code = f"\\u{ord(value[position]):04x}"
            raise RequestError(
                "invalid_text",
                f"the column {column!r} holds the lone surrogate {code} at position {position}, which is no "
                "character: remove it or write the whole pair",
            )
    elif isinstance(value, dict):
        for key, item in value.items():
            refuse_lone_surrogates(key, column)
            refuse_lone_surrogates(item, f"{column}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            refuse_lone_surrogates(item, f"{column}[{index}]")


def _token_ids(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        raise RequestError("invalid_prompt", "the column 'prompt_token_ids' must be a list of integers")
    if not value:
        raise RequestError("empty_prompt", "the column 'prompt_token_ids' is empty: it needs at least one id")
    return value


def _no_prompt(columns: dict[str, Any]) -> str:
    null = next((column for column in PROMPT_COLUMNS if column in columns), None)
    if null is not None:
        return f"the column {null!r} is null: give it a value"
    cure = "name one of them 'prompt', or write prompt.template into the job file"
    return (
        f"the row has no column 'prompt', 'prompt_token_ids' or 'messages' (its columns: {', '.join(columns)}): {cure}"
    )


def _refuse_null(value: Any) -> Any:
    if value is None:
        raise jinja2.TemplateRuntimeError("a value is null, and would print as None: use {{ column or '' }}")
    return value


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), type(value).__name__)
