"""Values out of a row for a key of the `eval:` section: a column as it is, or a Jinja template as text.

Owns the difference between the two. A source with braces is a template; any other is a column's name, where dots lead
into objects. Knows no key by name.
"""

from __future__ import annotations

import json
from typing import Any

from jobs.prompts import PromptTemplate, missing_column, refuse_lone_surrogates
from nanovllm import RequestError

_MARKUP = ("{{", "{%", "{#")


class Field:
    """One key's value in each row.

    Args:
        source: a column's name or a template.
        name: the key, for messages.

    Raises:
        ConfigError: the template is not valid Jinja.
    """

    def __init__(self, source: str, name: str):
        self._source = source
        self._name = name
        self._template = PromptTemplate(source, name) if is_template(source) else None

    def value(self, columns: dict[str, Any]) -> Any:
        """Give the value: of a template the text, of a column what stands in it.

        Raises:
            RequestError: the column is missing, null, or no text.
        """
        if self._template is not None:
            return self._template.render(columns)
        value = self._lookup(columns)
        if value is None:
            raise RequestError("missing_value", f"{self._name}: the column {self._source!r} is null: give it a value")
        refuse_lone_surrogates(value, self._source)
        return value

    def text(self, columns: dict[str, Any]) -> str:
        """Give the value as text; a number is written as JSON has it.

        Raises:
            RequestError: there is none, or it is no text and no number.
        """
        value = self.value(columns)
        if isinstance(value, str):
            return value
        if isinstance(value, bool | int | float):
            return json.dumps(value)
        raise RequestError("invalid_value", f"{self._name}: the column {self._source!r} must be text or a number")

    def _lookup(self, columns: dict[str, Any]) -> Any:
        if self._source in columns:
            return columns[self._source]
        value: Any = columns
        for part in self._source.split("."):
            if not isinstance(value, dict) or part not in value:
                raise missing_column(self._name, self._source, columns)
            value = value[part]
        return value


class ChoicesField:
    """The choices of each row: a column that holds a list, or a list of templates.

    Raises:
        ConfigError: a template is not valid Jinja.
    """

    def __init__(self, source: str | tuple[str, ...]):
        self._column = Field(source, "eval.choices") if isinstance(source, str) else None
        sources = () if isinstance(source, str) else source
        self._templates = [PromptTemplate(text, f"eval.choices[{i}]") for i, text in enumerate(sources)]

    def value(self, columns: dict[str, Any]) -> list[str]:
        """Give the choices.

        Raises:
            RequestError: there are none, or one is empty or no text.
        """
        if self._column is None:
            choices = [template.render(columns) for template in self._templates]
        else:
            choices = _listed(self._column.value(columns))
        if not choices or not all(isinstance(choice, str) and choice for choice in choices):
            raise RequestError(
                "invalid_choices", "eval.choices must give a list of texts, none of them empty, at least one"
            )
        return choices


def is_template(source: str) -> bool:
    """Whether a source is a template and no column's name."""
    return any(sign in source for sign in _MARKUP)


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str):  # a cell of a CSV file holds a list as JSON
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    if not isinstance(value, list):
        return []
    return [json.dumps(item) if isinstance(item, int | float) else item for item in value]
