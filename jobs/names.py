"""Suggest the nearest right name for a wrong one. Knows nothing of what the names stand for."""

import difflib
from collections.abc import Iterable


def suggest(wrong: str, known: Iterable[str]) -> str:
    """Say which name was probably meant, or list all of them when none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(wrong.lower(), known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known are {', '.join(known)}"
