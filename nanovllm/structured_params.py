"""What a completion's text must conform to, as a setting: checked for its form, in one form, hashable.

Leaf module: whether a schema or grammar can be enforced is for `structured` to say, which compiles it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json as json_module
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanovllm.errors import ConfigError
from nanovllm.sampling_fields import MIN_LIKENESS, FieldInfo, shown

CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object")
"""The settings of which a request has exactly one."""
MAX_CHARS = 2**16
"""Longest schema, regex, grammar or list of choices, in characters: their compilation takes time and stack."""
_MAX_DEPTH = 100
_NAME = "sampling: structured_outputs"


@dataclass(frozen=True, slots=True)
class StructuredOutputsParams:
    """What a completion must conform to; exactly one of the first five is given (vLLM's names).

    Attributes:
        json: a JSON schema as a mapping or as JSON text; kept as text, since the order of properties matters.
        regex: the whole text matches it.
        choice: the text is one of these.
        grammar: in llguidance's Lark dialect, or in GBNF as llama.cpp has it.
        json_object: True for any JSON object.
        disable_any_whitespace: no space between the tokens of JSON; else there may be one after a comma or colon.
        disable_additional_properties: objects that list properties have no others.
        whitespace_pattern: regex of the white space between the tokens of JSON, instead of that.

    Raises:
        ConfigError: not exactly one is given, or a value has the wrong form.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: tuple[str, ...] | list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self):
        if self.json_object is False:
            self._keep("json_object", None)
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ConfigError(f"{_NAME} has {found}, expected exactly one of {', '.join(CONSTRAINTS)}")
        for name in ("regex", "grammar", "whitespace_pattern"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))
        for name in ("json_object", "disable_any_whitespace", "disable_additional_properties"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), bool):
                raise _refusal(name, getattr(self, name), "true or false")
        if self.json is not None:
            self._keep("json", _schema_text(self.json))
        if self.choice is not None:
            self._keep("choice", _choices(self.choice))
        self._check_switches()

    def _keep(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_switches(self) -> None:
        if self.disable_additional_properties and self.json is None:
            raise ConfigError(f"{_NAME}.disable_additional_properties is about a schema, expected json beside it")
        for name in ("disable_any_whitespace", "whitespace_pattern"):
            if getattr(self, name) and self.json is None and not self.json_object:
                raise ConfigError(f"{_NAME}.{name} is about JSON, expected json or json_object beside it")
        if self.disable_any_whitespace and self.whitespace_pattern is not None:
            raise ConfigError(f"{_NAME} has both disable_any_whitespace and whitespace_pattern: keep one")

    def to_dict(self) -> dict[str, Any]:
        """Return what is given, as JSON values; the same values make an equal object."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value}


def as_structured_outputs(info: FieldInfo, value: Any) -> StructuredOutputsParams:
    """Make the setting of a mapping.

    Raises:
        ConfigError: it is no mapping, has an unknown key, or a value is refused.
    """
    if isinstance(value, StructuredOutputsParams):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{_NAME} is {shown(value)}, expected {info.expected}")
    names = [field.name for field in dataclasses.fields(StructuredOutputsParams)]
    for key in value:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=MIN_LIKENESS)
            cure = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(names)}"
            raise ConfigError(f"{_NAME} has the unknown key {shown(key)}; {cure}")
    values = {name: item for name, item in value.items() if item is not None}
    return StructuredOutputsParams(**values)


def _refusal(name: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{_NAME}.{name} is {shown(value)}, expected {expected}")


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise _refusal(name, value, "a non-empty string")
    if len(value) > MAX_CHARS:
        raise ConfigError(f"{_NAME}.{name} has {len(value)} characters, expected at most {MAX_CHARS}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{_NAME}.{name} has a lone surrogate at character {error.start}, expected whole characters"
        ) from None


def _choices(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise _refusal("choice", value, "a list of non-empty strings")
    for item in value:
        _check_text("choice", item)
    if sum(map(len, value)) > MAX_CHARS:
        raise ConfigError(f"{_NAME}.choice has {sum(map(len, value))} characters, expected at most {MAX_CHARS} in all")
    return tuple(dict.fromkeys(value))


def _schema_text(value: Any) -> str:
    """Return a schema as text, its keys in their order."""
    if isinstance(value, str):
        _check_text("json", value)
        value = _parsed(value)
    if not isinstance(value, Mapping):
        raise _refusal("json", value, "a JSON schema: an object, or its JSON text")
    try:
        text = json_module.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{_NAME}.json cannot be written as JSON: {error}") from None
    _check_text("json", text)
    return text


def _parsed(text: str) -> Any:
    try:
        return json_module.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ConfigError(f"{_NAME}.json is nested deeper than {_MAX_DEPTH} levels") from None
    except ValueError as error:
        raise ConfigError(f"{_NAME}.json is no JSON text: {error}") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {shown(twice)} twice")
    return found


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a copy of dicts and lists; json.dumps would take keys that are no text, and any depth."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"the key {shown(key)} is no text")
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    return [_plain(item, depth + 1) for item in value] if isinstance(value, list | tuple) else value
