"""The scorer of JSON objects, and the finding of one in a text that also says other things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.evaluation.scorers.wording import bad_target
from jobs.json_text import JsonProblem, StrictDecoder

_MAX_TEXT = 200_000
_MAX_STARTS = 500  # braces that begin no JSON, as in code before the answer


def first_json(text: str, opening: str = "{") -> Any:
    """Give the first JSON value that begins with one of the characters of `opening`; None if there is none.

    A value that two readers could take differently (a key twice, NaN) is none, nor is what stands inside it.
    """
    text, decoder = text[:_MAX_TEXT], StrictDecoder()
    starts = [position for position, character in enumerate(text) if character in opening]
    for start in starts[:_MAX_STARTS]:
        try:
            return decoder.decode(text, start)[0]
        except JsonProblem as problem:
            if problem.value is not None or problem.end is not None:
                return None
    return None


def json_match(
    prediction: str, target: Any, *, fields: Sequence[str] = (), score: str = "fraction", ignore_case: bool = False
) -> float:
    """Compare the first JSON object of the prediction with the target, field by field.

    Args:
        prediction: a text; without a JSON object in it the score is 0.
        target: an object, a text that is or holds one, or a list of accepted ones.
        fields: the fields that count; by default all that the target has. Others of the prediction are not looked at.
        score: `fraction` of the fields that are equal, or `all` for 1 or 0.
        ignore_case: compare texts in lower case.
    """
    targets = target if isinstance(target, list) else [target]
    accepted = [_target_fields(item, fields) for item in targets]
    if not accepted:
        raise bad_target("json_match", target, "at least one JSON object")
    found = first_json(prediction)
    if found is None:
        return 0.0
    fractions = [_equal_fraction(found, wanted, ignore_case) for wanted in accepted]
    return float(max(fractions) == 1.0) if score == "all" else max(fractions)


def _target_fields(target: Any, fields: Sequence[str]) -> dict[str, Any]:
    value = first_json(target) if isinstance(target, str) else target
    if not isinstance(value, dict) or not value:
        raise bad_target("json_match", target, "a JSON object that is not empty, or its text")
    missing = [name for name in fields if name not in value]
    if missing:
        raise bad_target("json_match", target, f"an object with the field {missing[0]!r}, which fields names")
    return {name: value[name] for name in fields} if fields else value


def _equal_fraction(found: dict[str, Any], wanted: dict[str, Any], ignore_case: bool) -> float:
    num_equal = sum(name in found and _is_equal(found[name], value, ignore_case) for name, value in wanted.items())
    return num_equal / len(wanted)


def _is_equal(left: Any, right: Any, ignore_case: bool) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right  # Python holds true and 1 for equal, JSON does not
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_is_equal(left[key], right[key], ignore_case) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        pairs = zip(left, right, strict=False)
        return len(left) == len(right) and all(_is_equal(one, other, ignore_case) for one, other in pairs)
    if ignore_case and isinstance(left, str) and isinstance(right, str):
        return left.lower() == right.lower()
    return left == right
