"""Reading of targets: a text, a number, or a list of accepted answers of which the best counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from jobs.evaluation.scorers.wording import bad_target


def accepted_texts(target: Any, scorer: str) -> list[str]:
    """Give the accepted answers as texts; a number counts as the text that JSON has for it.

    Raises:
        RequestError: the target is no text, no number and no list of them, or an empty list.
    """
    items = target if isinstance(target, list) else [target]
    if not items or not all(_is_text_or_number(item) for item in items):
        raise bad_target(scorer, target, "a text, a number or a list of them: write a template that makes a text of it")
    return [item if isinstance(item, str) else repr(item) for item in items]


def best(target: Any, scorer: str, score: Callable[[str], float]) -> float:
    """Give the highest score that `score` has for any of the accepted answers."""
    return max(score(text) for text in accepted_texts(target, scorer))


def _is_text_or_number(item: Any) -> bool:
    if isinstance(item, float):
        return math.isfinite(item)
    return isinstance(item, str | int) and not isinstance(item, bool)
