"""Types of flags that several commands share."""

from __future__ import annotations

import argparse


def auto_or_count(text: str) -> int | str:
    """Read `auto` or an integer of at least 1."""
    if text == "auto":
        return text
    return count(text)


def count(text: str) -> int:
    """Read an integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, found {text!r}")
    return value
