"""Ways to make texts alike before they are compared. Knows nothing of scores."""

from __future__ import annotations

import re
import string
from decimal import Decimal

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_DIGITS = str.maketrans("", "", string.digits)
_ARTICLES = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)
# A sign counts where no letter, digit or closing bracket stands before it: not in 3-4, which is a range. A point begins
# a number likewise: not in ...5, where it ends what was before.
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}.,])[-+−])?(?<![^\W_])(?<![0-9][.,])"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![)\]}.,])\.[0-9]+)"
    r"(?:[eE][+-]?[0-9]{1,2}(?![0-9]))?(?![^\W_])"
)


def without_punctuation(text: str) -> str:
    """Remove the 32 signs of ASCII."""
    return text.translate(_PUNCTUATION)


def without_digits(text: str) -> str:
    """Remove the digits 0 to 9."""
    return text.translate(_DIGITS)


def without_articles(text: str) -> str:
    """Remove a, an and the, in any case, and the white space that they leave."""
    return single_spaced(_ARTICLES.sub(" ", text))


def single_spaced(text: str) -> str:
    """Make one space of every run of white space and none at the ends."""
    return " ".join(text.split())


def squad_normalized(text: str) -> str:
    """Normalize as SQuAD does: lower case, no punctuation, no articles, single spaces.

    Source: Rajpurkar et al. 2016, evaluation script of SQuAD 1.1 (the same in 2.0).
    """
    return without_articles(without_punctuation(text.lower()))


def with_plain_numbers(text: str) -> str:
    """Write every number without separators, plus, exponent and zeros that carry no value: 1000 for 1,000.0."""
    return _NUMBER.sub(lambda match: _plain(match.group()), text)


def _plain(number: str) -> str:
    # Decimal keeps every digit, and two digits of exponent keep the result short.
    text = format(Decimal(number.replace(",", "").replace("−", "-")), "f")
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    whole, _, fraction = digits.partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    value = f"{whole}.{fraction}" if fraction else whole
    return value if value == "0" else sign + value
