"""Numbers and texts as people read them on the page."""

from __future__ import annotations

import math
import re
from typing import Any

MAX_CHARS = 20_000
"""Most characters of one text on the page; the results have the rest."""

_PREVIEW_CHARS = 300
_PREVIEW_LINES = 3

# What HTML cannot hold, what nobody can see, and what changes the direction of the text behind it.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def visible(text: str) -> str:
    """Give characters that a page cannot show by their numbers, so that it is valid UTF-8 and tells them."""
    return _UNSEEN.sub(lambda match: f"⟦U+{ord(match.group()):04X}⟧", text)


def clip(text: str) -> str:
    """Cut a very long text, and say so."""
    if len(text) <= MAX_CHARS:
        return text
    return f"{text[:MAX_CHARS]}\n[… {whole(len(text) - MAX_CHARS)} more characters: see results.jsonl]"


def preview(text: str) -> str:
    """Give the beginning of a text."""
    return text if len(text) <= _PREVIEW_CHARS else text[:_PREVIEW_CHARS] + "…"


def ending(text: str) -> str:
    """Give the last lines of a text's last paragraph: of a prompt after solved examples, its own question."""
    paragraph = text.strip().rpartition("\n\n")[2]
    end = "\n".join(paragraph.split("\n")[-_PREVIEW_LINES:])[-_PREVIEW_CHARS:]
    return end if end == text.strip() else f"…{end}"


def whole(value: Any) -> str:
    """Write a count: 12,345."""
    return f"{value:,}" if isinstance(value, int) else real(value)


def real(value: Any) -> str:
    """Write a measured number in four digits, a dash for none."""
    if not _is_number(value):
        return "–"
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def score(value: Any) -> str:
    """Write a score: four digits behind the point, as far as they say something."""
    if not _is_number(value):
        return "–"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.5g}"


def duration(seconds: Any) -> str:
    """Write a time span: 0.42 s, 3 min 5 s, 2 h 7 min."""
    if not _is_number(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
