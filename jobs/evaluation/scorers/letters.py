r"""Find which lettered choice a text takes: `B`, `(b)`, `The answer is C.`, `\boxed{D}`, `B) Paris`.

The rules stand in order of how certain they are; the first that finds something decides, by its last find.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from jobs.evaluation.scorers.wording import bad_target

LETTERS = "ABCDEFGHIJ"

# What tells the choice A from the article, as its next word.
_AFTER_A_CHOICE = "(?:is|was|because|since|as|and|or|but|which|for|due|based|given|from|with|if|would|should|can)"
_ADVERBS = "therefore|thus|hence|clearly|probably|definitely|(?:most )?likely"


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
    either = f"([{letters}{letters.lower()}])"
    ends = r"(?![\w'’-])"
    # A and I are words too: "A day" and "I think" choose nothing, "A because" does.
    upper = rf"(?!A\s(?!{_AFTER_A_CHOICE}\b)[a-z]|I\s[a-z])([{letters}])"
    lower = rf"([{letters.lower()}])(?=[)*:;]|\.(?!\w)|\s*(?:\Z|\n))"
    noun = r"\b(?:[Aa]nswer|ANSWER|[Cc]hoice|[Oo]ption)"
    verb = rf"\s(?:is|was|(?:would|should|must|will)\sbe)(?:,?\s(?:{_ADVERBS}),?)?"
    marks = "[*\"'`]{0,3}"
    letter = rf"(?:\({either}\)|{upper}{ends}|{lower})"
    alone = f"(?![AI])[{letters}]"  # as a word of a sentence
    return tuple(
        re.compile(rule)
        for rule in (
            rf"\A\W{{0,9}}{either}\W{{0,9}}\Z",
            rf"\\boxed\{{\s?(?:\\text\w{{0,6}}\{{)?\(?{either}\)?\s?\}}",
            rf"{noun}(?:(?:{verb})?\s?[:=]|{verb})\s{{0,3}}{marks}(?:(?:[Oo]ption|[Cc]hoice)\s)?{letter}",
            rf"{noun}\s?{marks}{letter}",
            rf"\A\s{{0,9}}[*(]{{0,3}}([{letters}])(?:[).:,*]|\s?\n)",
            rf"\({either}\)",
            rf"(?<![\w'’-])({alone}){ends}",
        )
    )
