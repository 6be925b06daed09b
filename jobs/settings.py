"""Read typed values out of a parsed job file, with errors that name the place, the key, the value and the cure.

Owns types, unknown keys and places. Knows no key of a job file by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jobs import yaml_text
from jobs.names import suggest
from nanovllm import ConfigError

_UNIT_SECONDS = {"d": 86400, "h": 3600, "m": 60, "min": 60, "s": 1}
_LONGEST_DURATION = 366 * 86400


class Document:
    """A parsed job file with what the command line put over it.

    Attributes:
        name: the file's name, for messages.
        tree: the values.
    """

    def __init__(self, name: str, tree: dict[str, Any], lines: dict[tuple, int]):
        self.name = name
        self.tree = tree
        self._lines = lines
        self._flags: dict[tuple, str] = {}

    def override(self, path: tuple[str, ...], value: Any, flag: str) -> None:
        """Put the value of a command-line flag over the file's."""
        parent = self.tree
        for depth, key in enumerate(path[:-1], start=1):
            child = parent.get(key)
            if child is None:
                child = parent[key] = {}
                self._flags[path[:depth]] = flag
            if not isinstance(child, dict):
                raise ConfigError(f"{flag}: {'.'.join(path[:depth])} is a single value and has no keys below it")
            parent = child
        parent[path[-1]] = value
        self._flags[path] = flag

    def is_from_flag(self, path: tuple) -> bool:
        """Whether the command line gave this value."""
        return any(path[:length] in self._flags for length in range(1, len(path) + 1))

    def place(self, path: tuple) -> str:
        """Name where a value was given: the flag, or the file and line, and the key."""
        dotted = ".".join(str(part) for part in path)
        for length in range(len(path), 0, -1):
            if path[:length] in self._flags:
                flag = self._flags[path[:length]]
                return flag if flag.startswith("--") and " " not in flag else f"{flag}: {dotted}"
            if path[:length] in self._lines:
                return f"{self.name}, line {self._lines[path[:length]]}: {dotted}"
        return f"{self.name}: {dotted}" if dotted else self.name


class Section:
    """One mapping of a document, read key by key; `finish` refuses the keys that nobody read."""

    def __init__(self, document: Document, path: tuple = ()):
        self._document = document
        self._path = path
        self._read: list[str] = []
        self._values = document.tree
        for key in path:
            self._values = self._values.get(key)
            if self._values is None:
                self._values = {}
        if not isinstance(self._values, dict):
            raise ConfigError(f"{self.place()} is {_show(self._values)}, expected keys with values")

    def place(self, *keys: Any) -> str:
        """Name where a key of this section was given."""
        return self._document.place((*self._path, *keys))

    def section(self, key: str) -> Section:
        """Open the mapping under `key`; one that is absent is empty."""
        self._read.append(key)
        return Section(self._document, (*self._path, key))

    def has(self, key: str) -> bool:
        """Whether `key` is given and not null."""
        return self._values.get(key) is not None

    def is_from_flag(self, key: str) -> bool:
        """Whether the command line gave `key`."""
        return self._document.is_from_flag((*self._path, key))

    def value(self, key: str, default: Any = None) -> Any:
        """Read a value of any type."""
        self._read.append(key)
        value = self._values.get(key)
        return default if value is None else value

    def text(self, key: str, default: str | None = None) -> str | None:
        """Read a text."""
        return self._typed(key, default, str, "text")

    def flag(self, key: str, default: bool | None = None) -> bool | None:
        """Read true or false."""
        return self._typed(key, default, bool, "true or false")

    def count(self, key: str, default: int | None = None, low: int = 0) -> int | None:
        """Read an integer that is at least `low`."""
        value = self._typed(key, default, int, f"an integer of at least {low}")
        if value is not None and value < low:
            raise self.refusal(key, value, f"an integer of at least {low}")
        return value

    def rate(self, key: str, default: float) -> float:
        """Read a number from 0 to 1."""
        value = self._typed(key, default, int | float, "a number from 0 to 1")
        if not 0 <= value <= 1:
            raise self.refusal(key, value, "a number from 0 to 1")
        return float(value)

    def duration(self, key: str) -> float | None:
        """Read a length of time in seconds: a number, or a text such as 2h, 90m or 1h30m."""
        value = self.value(key)
        if value is None:
            return None
        seconds = _seconds(value)
        if seconds is None or not 0 < seconds < _LONGEST_DURATION:
            raise self.refusal(key, value, "a time such as 45s, 30m, 2h or 1h30m")
        return seconds

    def choice(self, key: str, options: Sequence[str], default: str) -> str:
        """Read one of a few words."""
        value = self.text(key, default)
        if value not in options:
            raise self.refusal(key, value, f"one of {', '.join(options)}")
        return value

    def texts(self, key: str) -> list[str]:
        """Read a text or a list of texts."""
        value = self.value(key, [])
        items = value if isinstance(value, list) else [value]
        for item in items:
            if not isinstance(item, str) or not item:
                raise self.refusal(key, item, "a text or a list of texts")
        return items

    def mapping(self) -> dict[str, Any]:
        """Give the whole section, every key of it."""
        return dict(self._values)

    def refusal(self, key: str, value: Any, expected: str) -> ConfigError:
        """Make the error for a value of the wrong kind."""
        return ConfigError(f"{self.place(key)} is {_show(value)}, expected {expected}{hint(value)}")

    def finish(self) -> None:
        """Refuse keys that are not known."""
        self.refuse_unknown(self._read)

    def refuse_unknown(self, known: Iterable[str], instead_of: Callable[[str], str | None] = lambda key: None) -> None:
        """Refuse keys outside `known`, with what `instead_of` says about one or else the nearest right one."""
        known = set(known)
        for key in self._values:
            if key not in known:
                cure = instead_of(key) or suggest(key, known)
                raise ConfigError(f"{self.place(key)} is not a known key: {cure}")

    def _typed(self, key: str, default: Any, kind: Any, expected: str) -> Any:
        value = self.value(key, default)
        if value is None:
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.refusal(key, value, expected)
        return value


def parse_flag_value(text: str, flag: str) -> Any:
    """Read the value of a `--set`, written as in a job file."""
    try:
        return yaml_text.parse_scalar(text)
    except yaml_text.YamlProblem as problem:
        raise ConfigError(f"{flag}: {problem.reason}") from None


def hint(value: Any) -> str:
    """Give the cure for values that YAML readers take differently, or nothing."""
    if not isinstance(value, str):
        return ""
    if value.lower() in ("yes", "no", "on", "off", "y", "n"):
        return ": write true or false"
    if re.fullmatch(r"[-+]?0[0-9]+", value):
        digits = value.lstrip("+-0") or "0"
        return f": write {digits} (a leading zero means octal to some readers and nothing to others)"
    if re.fullmatch(r"[-+]?[0-9][0-9_]*", value):
        return ": write the number with neither quotes nor underscores"
    return ""


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, str) or not re.fullmatch(r"(\s*[0-9]{1,9}(\.[0-9]{1,9})?\s*(d|h|m|s|min))+\s*", value):
        return None
    pairs = re.findall(r"([0-9.]+)\s*(d|h|min|m|s)", value)
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in pairs)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
