"""Scorers that count shared words: f1 and rouge_l."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jobs.evaluation.scorers.normalizing import squad_normalized
from jobs.evaluation.scorers.targets import best

_ROUGE_WORD = re.compile(r"[a-z0-9]+")


def f1(prediction: str, target: Any) -> float:
    """Give the harmonic mean of precision and recall over the words of both, normalized as SQuAD does.

    Source: Rajpurkar et al. 2016, with SQuAD 2.0's rule that a side without words matches only another such.
    """
    words = squad_normalized(prediction).split()
    return best(target, "f1", lambda text: _word_f1(words, squad_normalized(text).split()))


def rouge_l(prediction: str, target: Any) -> float:
    """Give ROUGE-L's F measure: the longest common subsequence of words, against the lengths of both.

    Source: Lin 2004, with the tokens of the package rouge-score without stemming: runs of a-z and 0-9 in lower case.
    """
    words = _ROUGE_WORD.findall(prediction.lower())

    def score(text: str) -> float:
        reference = _ROUGE_WORD.findall(text.lower())
        return _f_measure(common_subsequence(words, reference), len(words), len(reference))

    return best(target, "rouge_l", score)


def common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Give the length of the longest common subsequence.

    One integer holds a row of the usual table, a bit for each item of `left`: zeros are where the length grows.
    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    positions: dict[str, int] = {}
    for index, item in enumerate(left):
        positions[item] = positions.get(item, 0) | 1 << index
    full = (1 << len(left)) - 1
    row = full
    for item in right:
        matches = row & positions.get(item, 0)
        row = (row + matches | row - matches) & full
    return len(left) - row.bit_count()


def _word_f1(words: list[str], reference: list[str]) -> float:
    if not words or not reference:
        return float(words == reference)
    num_shared = (Counter(words) & Counter(reference)).total()
    return _f_measure(num_shared, len(words), len(reference))


def _f_measure(num_shared: int, num_left: int, num_right: int) -> float:
    # 2PR / (P + R) with P and R over the same count of shared items
    return 2 * num_shared / (num_left + num_right) if num_shared else 0.0
