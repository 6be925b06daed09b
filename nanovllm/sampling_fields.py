"""What one sampling field accepts, and the check of a value against it.

Leaf module: knows errors only. Numbers must be numbers: a bool is not one, a string is not one (but as the key of a
mapping, where JSON has nothing else), NaN and infinity are refused. A float with an integral value (64.0, as
spreadsheets and data frames write it) is taken for an int; any other float is not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from nanovllm.errors import ConfigError

MAX_BIAS = 100.0
"""A bias beyond this, either way, counts as this (vLLM's limit)."""
MIN_LIKENESS = 0.75
"""Of a wrong name to a right one, as difflib has it, for the right one to be suggested: a slip of the pen has more."""
_MAX_SHOWN_CHARS = 60
_MAX_PATTERN = 10_000
_TOKEN_ID = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """What one field accepts; the commands build their flags and help from it.

    Attributes:
        name: field of `SamplingParams`.
        kind: "int", "float", "bool", "str_list", "int_list", "bias" (a mapping of token ids to numbers), "repetition"
            (the mapping of `repetition_detection`) or "structured" (that of `structured_outputs`).
        default: value when nothing is given.
        optional: whether None is allowed.
        low: smallest value allowed, or None.
        high: largest value allowed, or None.
        above_low: whether `low` itself is excluded.
        help: one line for people.
        convert: makes the field's value of one that is not None, for kinds that another module checks.
    """

    name: str
    kind: str
    default: Any
    optional: bool
    low: float | None
    high: float | None
    above_low: bool
    help: str
    convert: Callable[[FieldInfo, Any], Any] | None = None

    @property
    def expected(self) -> str:
        """Say in words what the field accepts."""
        words = {
            "int": "an integer",
            "float": "a number",
            "bool": "true or false",
            "str_list": "a non-empty string or a list of them",
            "int_list": "a list of token ids (integers from 0)",
            "bias": "a mapping of token ids (0 to the vocabulary's size - 1) to numbers from -100 to 100",
            "repetition": "a mapping with max_pattern_size from 1, min_pattern_size from 1 and min_count from 2",
            "structured": "a mapping with one of json, regex, choice, grammar or json_object",
        }[self.kind]
        if self.kind in ("int", "float"):
            if self.low is not None:
                words += f" above {self.low}" if self.above_low else f" of at least {self.low}"
            if self.high is not None:
                words += f" and at most {self.high}"
        return words + (" or null" if self.optional else "")


def about(
    kind: str,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above_low: bool = False,
    optional: bool = False,
    convert: Callable[[FieldInfo, Any], Any] | None = None,
) -> dict[str, Any]:
    """Return the metadata of a dataclass field that becomes a `FieldInfo`."""
    return {
        "kind": kind, "help": text, "low": low, "high": high, "above_low": above_low, "optional": optional,
        "convert": convert,
    }  # fmt: skip


def checked(info: FieldInfo, value: Any) -> Any:
    """Return a value in the form that the field keeps.

    Raises:
        ConfigError: it has the wrong type or range.
    """
    if value is None and info.optional:
        return () if info.default == () else None
    if info.convert is not None:
        return info.convert(info, value)
    if info.kind == "bool":
        if not isinstance(value, bool):
            raise _refusal(info, value)
        return value
    if info.kind == "str_list":
        return _checked_strings(info, value)
    if info.kind == "int_list":
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise _refusal(info, value)
        items = list(value)
        return tuple(_checked_number(info, item, integral=True, low=0, high=2**31 - 1) for item in items)
    if info.kind == "bias":
        return _checked_bias(info, value)
    if info.kind == "repetition":
        return _checked_repetition(info, value)
    return _checked_number(
        info, value, integral=info.kind == "int", low=info.low, high=info.high, above_low=info.above_low
    )


def _checked_strings(info: FieldInfo, value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise _refusal(info, value)
    for item in items:
        if not isinstance(item, str) or not item:
            raise _refusal(info, item)
    return tuple(items)


def _checked_bias(info: FieldInfo, value: Any) -> dict[int, float] | None:
    if not isinstance(value, Mapping):
        raise _refusal(info, value)
    biases: dict[int, float] = {}
    for key, bias in value.items():
        token_id = _token_id(key)
        if token_id is None:
            raise ConfigError(
                f"sampling: {info.name} has the key {shown(key)}, expected a token id: an integer from 0 to the "
                "vocabulary's size - 1"
            )
        is_number = isinstance(bias, Real) and not isinstance(bias, bool)
        if not is_number or not (isinstance(bias, Integral) or math.isfinite(bias)):
            raise ConfigError(
                f"sampling: {info.name} of the key {shown(key)} is {shown(bias)}, expected a number from -100 to 100"
            )
        if token_id in biases:
            raise ConfigError(f"sampling: {info.name} has the token id {token_id} twice, expected it once")
        biases[token_id] = float(min(max(bias, -MAX_BIAS), MAX_BIAS))
    return dict(sorted(biases.items())) or None


def _token_id(key: Any) -> int | None:
    """Read a key; whether the vocabulary has the id is for those to say who know the vocabulary."""
    if isinstance(key, str) and _TOKEN_ID.fullmatch(key):
        return int(key)
    if isinstance(key, Integral) and not isinstance(key, bool) and abs(key) < 10**18:
        return int(key)
    return None


def _checked_repetition(info: FieldInfo, value: Any) -> dict[str, int] | None:
    if not isinstance(value, Mapping):
        raise _refusal(info, value)
    unknown = [key for key in value if key not in ("max_pattern_size", "min_pattern_size", "min_count")]
    if unknown:
        raise ConfigError(f"sampling: {info.name} has the unknown key {shown(unknown[0])}, expected {info.expected}")
    sizes = {}
    for key, low, default in (("max_pattern_size", 0, 0), ("min_pattern_size", 0, 1), ("min_count", 2, None)):
        given = value.get(key, default)
        part = FieldInfo(f"{info.name}.{key}", "int", default, False, low, _MAX_PATTERN, False, "")
        sizes[key] = _checked_number(part, given, integral=True, low=low, high=_MAX_PATTERN)
    if sizes["max_pattern_size"] == 0:
        return None
    sizes["min_pattern_size"] = max(1, sizes["min_pattern_size"])
    if sizes["min_pattern_size"] > sizes["max_pattern_size"]:
        raise ConfigError(
            f"sampling: {info.name}.min_pattern_size is {sizes['min_pattern_size']}, expected at most "
            f"max_pattern_size, which is {sizes['max_pattern_size']}"
        )
    return sizes


def _checked_number(
    info: FieldInfo,
    value: Any,
    *,
    integral: bool,
    low: float | None,
    high: float | None,
    above_low: bool = False,
) -> int | float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _refusal(info, value)
    if not isinstance(value, Integral) and not math.isfinite(value):
        raise _refusal(info, value)
    if integral and value != int(value):
        raise _refusal(info, value)
    # Compared as given: an int beyond float range must be refused by its range, not by an OverflowError.
    if low is not None and (value < low or (above_low and value == low)):
        raise _refusal(info, value)
    if high is not None and value > high:
        raise _refusal(info, value)
    try:
        return int(value) if integral else float(value)
    except OverflowError:
        raise _refusal(info, value) from None


def _refusal(info: FieldInfo, value: Any) -> ConfigError:
    return ConfigError(f"sampling: {info.name} is {shown(value)}, expected {info.expected}")


def shown(value: Any) -> str:
    """Return a value as an error message shows it: in one line, and cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # int with more digits than Python prints
        text = f"an integer of {value.bit_length()} bits"
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 3] + "..."
