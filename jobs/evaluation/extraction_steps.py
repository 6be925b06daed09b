"""The steps of which extraction pipelines are made, each from a text to a text, or to None where it finds nothing.

Owns the steps and the options that they take. Knows neither pipelines nor job files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.evaluation.scorers import options as kind
from jobs.evaluation.scorers import patterns
from jobs.evaluation.scorers.code_text import fenced_code
from jobs.evaluation.scorers.json_fields import first_json
from jobs.evaluation.scorers.letters import find_choice_letter
from jobs.evaluation.scorers.number_text import find_numbers, write_number
from jobs.evaluation.scorers.options import Kind
from jobs.json_text import dumps

_WHICH = kind.one_of("first", "last")


@dataclass(frozen=True)
class StepInfo:
    """A step and what its users must know.

    Attributes:
        function: `(text, argument, **options)`, or `(text, **options)` for a step that takes no argument.
        argument: the kind of its argument, the value of its own key; None if it takes none.
        needs_argument: whether the argument must be there.
        options: the keys beside it, each with the kind of its value.
    """

    function: Callable[..., str | None]
    argument: Kind | None = None
    needs_argument: bool = False
    options: Mapping[str, Kind] = field(default_factory=dict)


def match_pattern(text: str, pattern: str, which: str = "first", group: int | str | None = None) -> str | None:
    """Give what a regular expression matches.

    Without `group` that is the first group that matched something, or the whole match of a pattern without groups.
    """
    compiled = patterns.compile_pattern(pattern)
    match = patterns.search_last(compiled, text) if which == "last" else patterns.search(compiled, text)
    if match is None:
        return None
    if group is not None:
        return match[group]
    if not compiled.groups:
        return match[0]
    return next((found for found in match.groups() if found), "")


def strip(text: str, characters: str | None = None) -> str:
    """Take white space, or the given characters, off both ends."""
    return text.strip(characters)


def remove(text: str, characters: str) -> str:
    """Take each of the characters out of the text."""
    return text.translate(dict.fromkeys(map(ord, characters)))


def first_line(text: str) -> str | None:
    """Give the first line that is not blank, without white space around it."""
    return next(_lines(text), None)


def last_line(text: str) -> str | None:
    """Give the last line that is not blank, without white space around it."""
    return next(_lines("\n".join(reversed(text.splitlines()))), None)


def after(text: str, mark: str, which: str = "first") -> str | None:
    """Give what follows a mark, or None without the mark."""
    _, found, rest = text.rpartition(mark) if which == "last" else text.partition(mark)
    return rest if found else None


def before(text: str, mark: str, which: str = "first") -> str:
    """Give what stands before a mark, or all of a text without it."""
    start = text.rfind(mark) if which == "last" else text.find(mark)
    return text if start < 0 else text[:start]


def number(text: str, which: str = "last") -> str | None:
    """Give a number of the text in plain form: no separators, currency, unit or percent; 0.75 for 3/4."""
    numbers = find_numbers(text)
    return write_number(numbers[0 if which == "first" else -1].value) if numbers else None


def boxed(text: str) -> str | None:
    r"""Give the content of the last `\boxed{…}`; None if its braces are not closed."""
    start, depth = text.rfind("\\boxed{"), 0
    if start < 0:
        return None
    start += len("\\boxed{")
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth < 0:
            return text[start:position]
    return None


def json_value(text: str, name: str | None = None) -> str | None:
    """Give the first JSON object or array as JSON with sorted keys, or one field of the first object.

    A field that is a text comes as that text, any other as JSON.
    """
    if name is None:
        value = first_json(text, "{[")
        return None if value is None else _canonical(value)
    found = first_json(text)
    if found is None or name not in found:
        return None
    return found[name] if isinstance(found[name], str) else _canonical(found[name])


STEPS: dict[str, StepInfo] = {
    "regex": StepInfo(match_pattern, kind.PATTERN, True, {"which": _WHICH, "group": kind.GROUP}),
    "strip": StepInfo(strip, kind.TEXT),
    "lower": StepInfo(str.lower),
    "remove": StepInfo(remove, kind.TEXT, True),
    "first_line": StepInfo(first_line),
    "last_line": StepInfo(last_line),
    "after": StepInfo(after, kind.TEXT, True, {"which": _WHICH}),
    "before": StepInfo(before, kind.TEXT, True, {"which": _WHICH}),
    "number": StepInfo(number, _WHICH),
    "choice_letter": StepInfo(find_choice_letter, kind.LETTERS),
    "boxed": StepInfo(boxed),
    "code_block": StepInfo(fenced_code),
    "json": StepInfo(json_value, kind.TEXT),
}


def _lines(text: str) -> Any:
    return (line.strip() for line in text.splitlines() if line.strip())


def _canonical(value: Any) -> str:
    return dumps(_sorted(value))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
