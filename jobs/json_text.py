"""JSON in and out, stricter than the standard library in both directions.

In: NaN, Infinity, numbers beyond double precision's range, and a key given twice are problems, since a later reader
would see something else than the author wrote. Out: one line of valid UTF-8 without NaN, without raw U+0085, U+2028
or U+2029 (some readers split lines there), and with lone surrogates written as the escapes that they came from.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_DEPTH = 200  # far below Python's recursion limit, so that whatever is read can also be written

_MUST_ESCAPE = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


class JsonProblem(ValueError):
    """A text is not JSON, or is JSON that cannot be trusted.

    Attributes:
        reason: what is wrong, as the end of a sentence.
        position: offset in the text where it is, if known.
        value: what could be read nevertheless, so that a row keeps its id; None when nothing could.
        end: offset behind the value; None when that is not known.
    """

    def __init__(self, reason: str, position: int | None = None, value: Any = None, end: int | None = None):
        super().__init__(reason)
        self.reason = reason
        self.position = position
        self.value = value
        self.end = end


class _BadNumber:
    """Stands where a number is that JSON cannot hold."""

    def __init__(self, text: str):
        self.text = text


class StrictDecoder:
    """Read JSON values one after another and remember the first thing that is wrong with each."""

    def __init__(self):
        self._reason: str | None = None
        self._bad_number: _BadNumber | None = None
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_float=self._float, parse_constant=self._constant
        )

    def decode(self, text: str, start: int = 0) -> tuple[Any, int]:
        """Read the value that begins at `start`.

        Returns:
            The value and the offset behind it.

        Raises:
            JsonProblem: the text is not JSON there, or holds something that cannot be trusted.
        """
        self._reason = self._bad_number = None
        try:
            value, end = self._decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise JsonProblem(f"is not JSON: {error.msg}", error.pos) from None
        except RecursionError:
            raise JsonProblem(f"is nested deeper than {MAX_DEPTH} levels") from None
        except ValueError as error:  # an integer with more digits than Python converts
            raise JsonProblem(f"holds a number that cannot be read ({error})") from None
        if self._bad_number is not None and self._reason is None:
            self._reason = f"holds {self._bad_number.text}, which JSON cannot hold"
        if self._reason is not None:
            raise JsonProblem(self._reason, value=value, end=end)
        if is_too_deep(value):
            raise JsonProblem(f"is nested deeper than {MAX_DEPTH} levels", end=end)
        return value, end

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs) and self._reason is None:
            self._reason = f"gives the key {_first_repeat(pairs)!r} twice"
        if self._bad_number is not None and self._reason is None:
            for key, value in pairs:
                if _contains(value, self._bad_number):
                    self._reason = f"holds {self._bad_number.text} under the key {key!r}, which JSON cannot hold"
                    break
        return result

    def _float(self, text: str) -> Any:
        value = float(text)
        return value if math.isfinite(value) else self._constant(text)

    def _constant(self, text: str) -> Any:
        bad = _BadNumber(text)
        self._bad_number = self._bad_number or bad
        return bad


def loads(text: str) -> Any:
    """Read a text that is one JSON value. Raises JsonProblem."""
    start = skip_blanks(text, 0)
    if start == len(text):
        raise JsonProblem("is empty")
    value, end = StrictDecoder().decode(text, start)
    end = skip_blanks(text, end)
    if end != len(text):
        raise JsonProblem("goes on behind the end of the JSON value", end)
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    """Write `value` as JSON that is valid UTF-8 whatever the strings hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    if text.isascii():
        return text
    return _MUST_ESCAPE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def find_lone_surrogate(text: str) -> int | None:
    """Give the position of the first character that is half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def skip_blanks(text: str, position: int) -> int:
    """Give the offset of the next character that is not JSON white space."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def is_too_deep(value: Any) -> bool:
    """Whether containers are nested deeper than `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [child for item in level if isinstance(item, dict | list) for child in _children(item)]
        if not level:
            return False
    return True


def _children(item: dict | list) -> list:
    values = item.values() if isinstance(item, dict) else item
    return [child for child in values if isinstance(child, dict | list)]


def _first_repeat(pairs: list[tuple[str, Any]]) -> str:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    return ""


def _contains(value: Any, wanted: object) -> bool:
    if isinstance(value, list):
        return any(_contains(item, wanted) for item in value)
    return value is wanted
