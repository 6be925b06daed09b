"""The kinds of options that scorers and extraction steps take, and the reading of them from a job file's values.

Owns types, unknown names and places. Knows no scorer and no step by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.evaluation.scorers.patterns import compile_pattern
from jobs.evaluation.scorers.wording import show
from jobs.names import suggest
from nanovllm import ConfigError


@dataclass(frozen=True)
class Kind:
    """What values an option takes.

    Attributes:
        expected: the values, as the end of a sentence.
        accepts: whether a value is one of them. It may raise ValueError to say more.
    """

    expected: str
    accepts: Callable[[Any], bool]


def one_of(*words: str) -> Kind:
    """Make the kind of an option that is one of a few words."""
    return Kind(f"one of {', '.join(words)}", lambda value: value in words)


def count(low: int, high: int) -> Kind:
    """Make the kind of an option that is an integer in a range."""
    return Kind(f"an integer from {low} to {high}", lambda value: _is_integer(value) and low <= value <= high)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_text(item) for item in value)


def _is_pattern(value: Any) -> bool:
    return _is_text(value) and bool(compile_pattern(value))


def _are_patterns(value: Any) -> bool:
    return _are_texts(value) and all(_is_pattern(item) for item in value)


def _are_letters(value: Any) -> bool:
    return _is_text(value) and value.isascii() and value.isalpha() and value.isupper() and len(set(value)) == len(value)


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
AMOUNT = Kind("a number of at least 0", _is_amount)
TEXT = Kind("a text", _is_text)
TEXTS = Kind("a list of texts", _are_texts)
PATTERN = Kind("a regular expression", _is_pattern)
PATTERNS = Kind("a list of regular expressions", _are_patterns)
LETTERS = Kind("different capital letters such as ABCD", _are_letters)
GROUP = Kind("a group's number or name", lambda value: _is_text(value) or (_is_integer(value) and 0 <= value < 100))


def read_options(values: Any, kinds: Mapping[str, Kind], owner: str, place: str) -> dict[str, Any]:
    """Check the options of one scorer or step.

    Args:
        values: what stands in the job file; null means no options.
        kinds: the options that there are.
        owner: the scorer or step, for messages.
        place: where it stands, for messages.

    Raises:
        ConfigError: an option is unknown or has the wrong kind of value.
    """
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{place}: {owner} is given {show(values)}, expected options with values")
    for name, value in values.items():
        if name not in kinds:
            cure = suggest(str(name), kinds) if kinds else "it takes none"
            raise ConfigError(f"{place}: {owner} has no option {show(name)}: {cure}")
        check_value(value, kinds[name], f"{owner}.{name}", place)
    return dict(values)


def check_value(value: Any, kind: Kind, name: str, place: str) -> None:
    """Refuse a value that is not of its kind. Raises ConfigError."""
    try:
        reason = "" if kind.accepts(value) else f", expected {kind.expected}"
    except ValueError as problem:
        reason = f": {problem}"
    if reason:
        raise ConfigError(f"{place}: {name} is {show(value)}{reason}")
