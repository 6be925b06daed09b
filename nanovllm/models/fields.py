"""Typed reading of one JSON object, with errors that name file, key, value found and value expected.

Owns the rule that nothing from a checkpoint's JSON is used before its type and range are known. Must not know what any
key means.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from nanovllm.errors import ConfigError

_SHOWN_CHARS = 60  # a hostile file may hold megabytes in one value
_SHOWN_ITEMS = 3


def describe(value: Any) -> str:
    """Return a short text for a JSON value, whatever its size."""
    if isinstance(value, dict):
        return f"an object with {len(value)} keys"
    if isinstance(value, list):
        simple = len(value) <= _SHOWN_ITEMS and not any(isinstance(item, (dict, list)) for item in value)
        return f"[{', '.join(map(describe, value))}]" if simple else f"a list of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 200:
        return "an integer of more than 60 digits"  # Python refuses to print the largest ones
    if isinstance(value, str) and len(value) > _SHOWN_CHARS:
        return json.dumps(value[:_SHOWN_CHARS]) + "…"
    return json.dumps(value)


def name_keys(keys: list[str], limit: int = 12) -> str:
    """Return a short, printable enumeration of keys taken from a file."""
    shown = ", ".join(describe(key)[1:-1] for key in keys[:limit])
    return shown if len(keys) <= limit else f"{shown} and {len(keys) - limit} more"


class Fields:
    """One JSON object under checked access; remembers which keys were asked for.

    `null` counts as absent everywhere but in `has`.

    Args:
        values: the parsed object.
        where: how errors call the file.
        prefix: path of the object inside the file, such as `rope_scaling.`.
    """

    def __init__(self, values: dict[str, Any], where: str, prefix: str = ""):
        self.values = values
        self.where = where
        self.prefix = prefix
        self._asked: set[str] = set()

    def has(self, key: str) -> bool:
        """Tell whether the key is written in the file, `null` included."""
        self._asked.add(key)
        return key in self.values

    def raw(self, key: str) -> Any:
        """Return the value as parsed, None when absent or null."""
        self._asked.add(key)
        return self.values.get(key)

    def unasked(self) -> list[str]:
        """Return the keys with a value that nobody asked for, sorted."""
        return sorted(key for key, value in self.values.items() if value is not None and key not in self._asked)

    def refuse(self, key: str, expected: str, cure: str = "correct the key or fetch the file again") -> NoReturn:
        """Raise a ConfigError for this key."""
        value = self.values.get(key)
        found = describe(value) if key in self.values else "missing"
        raise ConfigError(f"{self.where}: {self.prefix}{key} is {found}, expected {expected}; {cure}")

    def integer(self, key: str, *, high: int, low: int = 1, default: int | None = None) -> int:
        """Return an int in [low, high]; without a default the key is required."""
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not low <= value <= high:
            self.refuse(key, f"an integer from {low} to {high}")
        return value

    def number(
        self, key: str, *, high: float, above: float = 0, or_zero: bool = False, default: float | None = None
    ) -> float:
        """Return a finite float in (above, high], or 0 if `or_zero`; without a default the key is required."""
        value = self.raw(key)
        if value is None and default is not None:
            return default
        is_number = type(value) in (int, float)  # a bool is an int to isinstance
        if not (is_number and (above < value <= high or (or_zero and value == 0))):
            bounds = f"from 0 to {high:g}" if or_zero else f"above {above:g} and at most {high:g}"
            self.refuse(key, f"a number {bounds}")
        return float(value)

    def numbers(self, key: str, *, length: int, high: float) -> list[float]:
        """Return a list of `length` floats, each in (0, high]; required."""
        values = self.raw(key)
        good = isinstance(values, list) and len(values) == length
        if not good or not all(type(value) in (int, float) and 0 < value <= high for value in values):
            self.refuse(key, f"a list of {length} numbers above 0 and at most {high:g}")
        return [float(value) for value in values]

    def boolean(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def text(self, key: str) -> str | None:
        """Return a string, None when absent."""
        value = self.raw(key)
        if value is not None and not isinstance(value, str):
            self.refuse(key, "a string")
        return value

    def strings(self, key: str) -> list[str] | None:
        """Return a list of strings, None when absent."""
        values = self.raw(key)
        if values is None:
            return None
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            self.refuse(key, "a list of strings")
        return values

    def mapping(self, key: str) -> dict[str, Any]:
        """Return an object, empty when absent."""
        value = self.raw(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.refuse(key, "an object")
        return value
