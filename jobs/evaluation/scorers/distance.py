"""The scorer of edit distance."""

from __future__ import annotations

from typing import Any

from jobs.evaluation.scorers.normalizing import single_spaced
from jobs.evaluation.scorers.targets import best

MAX_CHARACTERS = 20_000  # a pair of this length takes about a tenth of a second


def levenshtein(prediction: str, target: Any, *, ignore_case: bool = False, ignore_whitespace: bool = False) -> float:
    """Give the similarity 1 - distance / length of the longer text, over their first `MAX_CHARACTERS` characters."""

    def normalized(text: str) -> str:
        text = text.lower() if ignore_case else text
        return (single_spaced(text) if ignore_whitespace else text)[:MAX_CHARACTERS]

    def similarity(text: str) -> float:
        longest = max(len(wanted), len(text))
        return 1.0 - edit_distance(wanted, text) / longest if longest else 1.0

    wanted = normalized(prediction)
    return best(target, "levenshtein", lambda text: similarity(normalized(text)))


def edit_distance(left: str, right: str) -> int:
    """Give the least number of insertions, deletions and replacements that make one text of the other.

    Two integers hold a column of the usual table as differences of +1 and -1, a bit for each character of the shorter
    text, so memory grows with that alone.
    Source: Myers 1999 in the form of Hyyrö 2003, "A bit-vector algorithm for computing Levenshtein distances".
    """
    short, long = sorted((left, right), key=len)
    if not short:
        return len(long)
    positions: dict[str, int] = {}
    for index, character in enumerate(short):
        positions[character] = positions.get(character, 0) | 1 << index
    full, last = (1 << len(short)) - 1, 1 << len(short) - 1
    rises, falls, distance = full, 0, len(short)
    for character in long:
        equal = positions.get(character, 0)
        vertical = equal | falls
        diagonal = ((equal & rises) + rises ^ rises) | equal
        row_rises = falls | ~(diagonal | rises) & full
        row_falls = rises & diagonal
        distance += bool(row_rises & last) - bool(row_falls & last)
        row_rises = row_rises << 1 | 1
        row_falls <<= 1
        rises = (row_falls | ~(vertical | row_rises)) & full
        falls = row_rises & vertical & full
    return distance
