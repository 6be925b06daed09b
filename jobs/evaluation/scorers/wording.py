"""Words that messages share. Knows no scorer and no step."""

from typing import Any

from nanovllm import RequestError


def show(value: Any) -> str:
    """Write a value short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def bad_target(scorer: str, target: Any, expected: str) -> RequestError:
    """Make the error of a row whose target a scorer cannot use."""
    return RequestError("bad_target", f"scorer {scorer}: the target is {show(target)}, expected {expected}")
