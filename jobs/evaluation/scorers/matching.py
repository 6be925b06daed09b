"""Scorers that say yes or no of a text: exact_match, includes, regex."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jobs.evaluation.scorers import normalizing, patterns
from jobs.evaluation.scorers.targets import best
from jobs.evaluation.scorers.wording import bad_target


def exact_match(
    prediction: str,
    target: Any,
    *,
    regexes_to_ignore: Sequence[str] = (),
    ignore_numbers_formatting: bool = False,
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
    ignore_articles: bool = False,
    ignore_whitespace: bool = False,
) -> float:
    """Say whether the texts are equal once what the options name is taken out of both, in the order of the options.

    Source: lm-evaluation-harness, `exact_match` (the options that it has), and SQuAD for articles.
    """
    ignored = [patterns.compile_pattern(pattern) for pattern in regexes_to_ignore]
    steps = [
        (ignore_numbers_formatting, normalizing.with_plain_numbers),
        (ignore_case, str.lower),
        (ignore_punctuation, normalizing.without_punctuation),
        (ignore_numbers, normalizing.without_digits),
        (ignore_articles, normalizing.without_articles),
        (ignore_whitespace, normalizing.single_spaced),
    ]

    def normalized(text: str) -> str:
        for pattern in ignored:
            text = patterns.remove(pattern, text)
        for is_wanted, step in steps:
            if is_wanted:
                text = step(text)
        return text

    wanted = normalized(prediction)
    return best(target, "exact_match", lambda text: float(normalized(text) == wanted))


def includes(prediction: str, target: Any, *, ignore_case: bool = False, whole_words: bool = False) -> float:
    """Say whether the target stands anywhere in the prediction."""

    def is_included(text: str) -> float:
        if not text.strip():
            raise bad_target("includes", target, "a text that is not empty, since every text includes the empty one")
        if not whole_words:
            return float(text.lower() in prediction.lower() if ignore_case else text in prediction)
        pattern = re.compile(rf"(?<!\w){re.escape(text)}(?!\w)", re.IGNORECASE if ignore_case else 0)
        return float(pattern.search(prediction) is not None)

    return best(target, "includes", is_included)


def regex(
    prediction: str, target: Any, *, ignore_case: bool = False, dot_all: bool = False, full: bool = False
) -> float:
    """Say whether the target, a regular expression, matches in the prediction (or, with `full`, the whole of it)."""
    flags = (re.IGNORECASE if ignore_case else 0) | (re.DOTALL if dot_all else 0)

    def is_matched(pattern: str) -> float:
        try:
            compiled = patterns.compile_pattern(pattern, flags)
        except ValueError as problem:
            raise bad_target("regex", target, f"a regular expression ({problem})") from None
        return float(patterns.search(compiled, prediction, full) is not None)

    return best(target, "regex", is_matched)
