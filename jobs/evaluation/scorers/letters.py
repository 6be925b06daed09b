r"""Find which lettered choice a text takes: `B`, `(b)`, `The answer is C.`, `\boxed{D}`, `B) Paris`.

The rules stand in order of how certain they are; the first that finds something decides, by its last find.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from jobs.evaluation.scorers.wording import bad_target

LETTERS = "ABCDEFGHIJ"


def find_choice_letter(text: str, letters: str = LETTERS) -> str | None:
    """Give the letter that a text chooses, in upper case, or None if it chooses none."""
    for rule in _rules(letters):
        found = list(rule.finditer(text))
        if found:
            return found[-1][found[-1].lastindex].upper()
    return None


def choice_letter(prediction: str, target: Any, *, letters: str = LETTERS) -> float:
    """Say whether the prediction chooses the target: a letter, an index counted from 0, or a list of accepted ones."""
    accepted = {_target_letter(item, letters) for item in (target if isinstance(target, list) else [target])}
    if not accepted:
        raise bad_target("choice_letter", target, "at least one letter")
    return float(find_choice_letter(prediction, letters) in accepted)


def _target_letter(target: Any, letters: str) -> str:
    if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(letters):
        return letters[target]
    text = target.strip().strip("().:*").upper() if isinstance(target, str) else ""
    if len(text) == 1 and text in letters:
        return text
    raise bad_target("choice_letter", target, f"one of the letters {letters}, or an index from 0 to {len(letters) - 1}")


@lru_cache(maxsize=16)
def _rules(letters: str) -> tuple[re.Pattern[str], ...]:
    upper = f"([{letters}])"
    either = f"([{letters}{letters.lower()}])"
    ends = r"(?![\w'’-])"
    noun = r"\b(?:[Aa]nswer|ANSWER|[Cc]hoice|[Oo]ption)"
    cue = rf"{noun}(?:\s(?:is|was|would\sbe))?\s?[:=]?\s?[*\"'`]{{0,3}}(?:[Oo]ption\s)?"
    # A and I are words too: alone in a sentence they choose nothing.
    no_words = f"(?![AI])[{letters}]"
    return tuple(
        re.compile(rule)
        for rule in (
            rf"\A\W{{0,9}}{either}\W{{0,9}}\Z",
            rf"\\boxed\{{\s?(?:\\text\w{{0,6}}\{{)?\(?{either}\)?\s?\}}",
            rf"{cue}(?:\({either}\)|{upper}{ends})",
            rf"\A\s{{0,9}}[*(]{{0,3}}{upper}(?:[).:,*]|\s?\n)",
            rf"\({either}\)",
            rf"(?<![\w'’-])({no_words}){ends}",
        )
    )
