"""Scores as lines for people. Owns the words; computes nothing."""

from __future__ import annotations

from typing import Any

_FEW_GROUPS = 20
"""Below this number of groups an error says little of itself."""

_LARGE = 1e6
"""From here on digits behind the point say nothing."""


def number(value: float, sign: str = "") -> str:
    """Write a score in four digits behind the point, in six of all where it is large; `sign` "+" writes a plus too."""
    return f"{value:{sign}.4f}" if abs(value) < _LARGE else f"{value:{sign}.6g}"


def metric_lines(scores: dict[str, Any]) -> list[str]:
    """Say each metric with its interval, and once if there are few groups."""
    metrics = scores["metrics"]
    width = max(map(len, metrics), default=0)
    lines = [f"{name:<{width}}  {_shown(values)}" for name, values in metrics.items()]
    few = few_groups(metrics)
    return lines if few is None else [*lines, few]


def few_groups(metrics: dict[str, dict[str, Any]]) -> str | None:
    """Say that intervals come from few groups; None where they come from many, from single rows, or are not there."""
    found = [
        (values["num_groups"], name)
        for name, values in metrics.items()
        if values.get("num_groups") is not None and values.get("low") is not None
    ]
    num, name = min(found, key=lambda one: one[0], default=(_FEW_GROUPS, ""))
    return None if num >= _FEW_GROUPS else f"{name}: {num} groups: the interval is rough below some {_FEW_GROUPS}"


def _shown(values: dict[str, Any]) -> str:
    if values["value"] is None:
        return "too large a number" if values["n"] else "no rows"
    text = number(values["value"])
    if values["low"] is not None and values["high"] is not None:
        text += f"  [{number(values['low'])}, {number(values['high'])}]"
    if values["stderr"] is not None:
        text += f"  ± {number(values['stderr'])}"
    return f"{text}  (n = {values['n']})"
