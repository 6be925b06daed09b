"""The scorer of numbers, exact within the tolerances that it is given."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from jobs.evaluation.scorers.number_text import Number, find_numbers
from jobs.evaluation.scorers.wording import bad_target


def numeric(
    prediction: str,
    target: Any,
    *,
    tolerance: float = 0,
    relative_tolerance: float = 0,
    which: str = "last",
    percent: str = "either",
    decimal_comma: bool = False,
) -> float:
    """Say whether the prediction's number is the target's, within the larger of both tolerances.

    Args:
        prediction: a text; without a number in it the score is 0.
        target: a number, a text that holds exactly one number, or a list of accepted ones.
        tolerance: greatest difference.
        relative_tolerance: greatest difference as a part of the target.
        which: the `first` or `last` number of the prediction, or its `only` one.
        percent: `fraction` reads 50 % as 0.5, `unit` as 50, and `either` as both where only one side has the sign.
        decimal_comma: read 1.234,5 as 1234.5.
    """
    found = _pick(find_numbers(prediction, decimal_comma), which)
    accepted = [_target_number(item, decimal_comma) for item in (target if isinstance(target, list) else [target])]
    if not accepted:
        raise bad_target("numeric", target, "at least one number")
    if found is None:
        return 0.0
    limits = (_exact(tolerance), _exact(relative_tolerance))
    return float(any(_is_near(found, number, limits, percent) for number in accepted))


def _pick(numbers: list[Number], which: str) -> Number | None:
    if not numbers or (which == "only" and len(numbers) > 1):
        return None
    return numbers[0] if which == "first" else numbers[-1]


def _target_number(target: Any, decimal_comma: bool) -> Number:
    if isinstance(target, int | float) and not isinstance(target, bool) and math.isfinite(target):
        return Number(_exact(target))
    numbers = find_numbers(target, decimal_comma) if isinstance(target, str) else []
    if len(numbers) != 1:
        raise bad_target("numeric", target, "a number or a text with exactly one: see target_extract")
    return numbers[0]


def _exact(value: int | float) -> Fraction:
    # by its shortest text: a tolerance of 0.1 means a tenth, not the nearest binary number
    return Fraction(repr(value))


def _is_near(found: Number, wanted: Number, limits: tuple[Fraction, Fraction], percent: str) -> bool:
    tolerance, relative_tolerance = limits
    if percent == "either" and found.is_percent == wanted.is_percent:
        percent = "unit"
    return any(
        abs(left - right) <= max(tolerance, relative_tolerance * abs(right))
        for left in _readings(found, percent)
        for right in _readings(wanted, percent)
    )


def _readings(number: Number, percent: str) -> list[Fraction]:
    if not number.is_percent or percent == "unit":
        return [number.value]
    return [number.value / 100] if percent == "fraction" else [number.value, number.value / 100]
