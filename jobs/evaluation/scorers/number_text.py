r"""Find the numbers that a text speaks of, as exact values.

Owns their spelling: signs (a minus also as − or as a dash), thousands separators (`1,000`, also `'`, `_`, thin and
no-break spaces, LaTeX's `{,}` and `\,`), decimals, exponents (`1e5`, `3 x 10^5`), fractions (`3/4`, `1 1/2`, `½`,
`\frac{3}{4}`), currencies before the number, percent and the words thousand to trillion behind it. Whatever else stands
around, such as a unit, is not read.
Knows nothing of scores.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

_SEPARATORS = ",'’_\u00a0\u2009\u202f"
_MINUS = r"\-−–‐‑﹣－"  # what people and models write for it, for a class of characters
_SWAP_COMMA = str.maketrans(",.", ".,")
_MULTIPLIERS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MAX_DIGITS = 400  # of a number, far above what is meant as one and far below what costs time

_NUMBER = re.compile(
    rf"""
    (?: (?<! [\w)\]}}%] ) (?P<sign> [+{_MINUS}] ) )?           # not the minus of 3-4, (x)-4 or a date
    (?:
        (?: (?: (?<!\w) (?:US|AU|CA|NZ|HK) )? [$€£¥₹₩₽₺₫₱฿] | (?<!\w) (?:USD|EUR|GBP|JPY|CHF|CNY|INR|Rs\.?) )
        \s? (?P<inner_sign> [+{_MINUS}] )?
      | (?<! [^\W_] ) (?<! [0-9]\. )                      # not the 2 of H2, nor the 3 of 1.2.3
    )
    (?:
        (?: (?P<latex_whole> [0-9]+ ) \s? )? \\[dt]?frac \{{ \s? (?P<latex_top> [0-9]+ ) \s? \}}
        \{{ \s? (?P<latex_bottom> [0-9]+ ) \s? \}}
      | (?: (?P<whole> [0-9]+ ) \s )? (?<! [0-9]/ ) (?P<top> [0-9]+ ) \s?/\s? (?P<bottom> [0-9]+ )
        (?! [0-9] | [.,/][0-9] )                         # not the start of a date
      | (?: (?P<vulgar_whole> [0-9]+ ) \s? )? (?P<vulgar> [\u00bc-\u00be\u2150-\u215e] )
      | (?P<decimal>
            (?: [0-9]{{1,3}} (?: [{_SEPARATORS}] [0-9]{{3}} )+ (?![0-9]) | [0-9]+ ) (?: \.[0-9]+ )? | \.[0-9]+
        )
        (?: [eE] (?P<exponent> [-+]?[0-9]{{1,3}} ) (?! [^\W_] )
          | \s? (?: [×x*·] | \\times | \\cdot ) \s? 10 \s? (?: \^ | \*\* ) \s? \{{? (?P<power> [-+−]?[0-9]{{1,3}} ) \}}?
        )?
    )
    (?: \s? (?P<percent> % | percent\b | per\scent\b ) | \s (?P<multiplier> {"|".join(_MULTIPLIERS)} ) \b )?
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Number:
    """A number in a text.

    Attributes:
        value: its value, where percent counts as a unit: 50 of 50 %.
        is_percent: whether a sign or word of percent follows.
    """

    value: Fraction
    is_percent: bool = False


def find_numbers(text: str, decimal_comma: bool = False) -> list[Number]:
    """Find all numbers in the order of the text; with `decimal_comma` 1.234,5 is read as 1234.5."""
    text = text.replace("{,}", ",").replace("\\,", ",").replace("\\%", "%").replace("\\$", "$")
    if decimal_comma:
        text = text.translate(_SWAP_COMMA)
    numbers = (_read(match) for match in _NUMBER.finditer(text))
    return [number for number in numbers if number is not None]


def write_number(value: Fraction) -> str:
    """Write a value in its shortest exact form: a decimal where there is one, else a fraction such as 1/3."""
    bottom, num_twos, num_fives = value.denominator, 0, 0
    while bottom % 2 == 0:
        bottom, num_twos = bottom // 2, num_twos + 1
    while bottom % 5 == 0:
        bottom, num_fives = bottom // 5, num_fives + 1
    if bottom != 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(num_twos, num_fives)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-places]}.{digits[-places:]}" if places else sign + digits


def _read(match: re.Match[str]) -> Number | None:
    if len(match.group()) > _MAX_DIGITS:
        return None
    value = _magnitude(match)
    if value is None:
        return None
    value *= _MULTIPLIERS.get(match["multiplier"], 1)
    if (match["sign"] or match["inner_sign"] or "+") != "+":
        value = -value
    return Number(value, match["percent"] is not None)


def _magnitude(match: re.Match[str]) -> Fraction | None:
    if match["decimal"]:
        digits = re.sub(f"[{_SEPARATORS}]", "", match["decimal"])
        power = (match["exponent"] or match["power"] or "0").replace("−", "-")
        return Fraction(digits) * Fraction(10) ** int(power)
    if match["vulgar"]:
        part = Fraction(unicodedata.numeric(match["vulgar"])).limit_denominator(10)
        return int(match["vulgar_whole"] or 0) + part
    kind = "latex_" if match["latex_top"] else ""
    whole, top, bottom = match[f"{kind}whole"], int(match[f"{kind}top"]), int(match[f"{kind}bottom"])
    return int(whole or 0) + Fraction(top, bottom) if bottom else None
