"""Geometry of the page's charts: numbers in, coordinates and labels out. The drawing itself is in `charts.html`.

All lengths are in units of the drawing's own coordinate system. Knows neither runs nor HTML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 24
_PLOT_W, _PLOT_H = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
_MIN_SLOTS = 5  # so that one or two bars are no walls


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Box:
    """A bar of a chart, with the words that say what it stands for."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with axes.

    Attributes:
        summary: the whole in one sentence, for who cannot see it.
        boxes: bars, or none.
        line, area: points of a curve and of the surface below it, as SVG writes them, or empty.
        mark: where a vertical line stands, or None.
    """

    summary: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    boxes: Sequence[Box] = ()
    line: str = ""
    area: str = ""
    mark: Tick | None = None

    width, height = WIDTH, HEIGHT
    left, right, base = _LEFT, WIDTH - _RIGHT, HEIGHT - _BOTTOM


@dataclass(frozen=True, slots=True)
class Whisker:
    """A value with its interval on a scale from 0 to 100."""

    value: float
    low: float
    high: float


def columns(bars: Sequence[tuple[str, str, int]], summary: str, mark: tuple[float, str] | None = None) -> Chart:
    """Draw counts as columns.

    Args:
        bars: axis label, words and count of each, from left to right.
        summary: the chart in one sentence.
        mark: a place along the bars, counted in bars, and what it is.
    """
    scale = Scale(0, max((count for _, _, count in bars), default=0), are_counts=True)
    step = _PLOT_W / max(len(bars), _MIN_SLOTS)
    gap = 2 if step > 6 else 0.5
    boxes = []
    for i, (_, words, count) in enumerate(bars):
        height = _PLOT_H * scale.share(count)
        boxes.append(Box(_round(_LEFT + i * step + gap / 2), _round(_TOP + _PLOT_H - height),
                         _round(step - gap), _round(height), words))  # fmt: skip
    every = max(math.ceil(len(bars) / 6), 1)
    x_ticks = [Tick(_round(_LEFT + (i + 0.5) * step), bars[i][0]) for i in range(0, len(bars), every)]
    at = None if mark is None else Tick(_round(_LEFT + mark[0] * step), mark[1])
    return Chart(summary, x_ticks, _y_ticks(scale), boxes=boxes, mark=at)


def curve(points: Sequence[tuple[float, float]], summary: str, x_unit: str) -> Chart:
    """Draw a curve over a horizontal axis that begins at 0."""
    x_scale = Scale(0, max((x for x, _ in points), default=0))
    y_scale = Scale(0, max((y for _, y in points), default=0))
    spots = [(_round(_LEFT + _PLOT_W * x_scale.share(x)), _round(_TOP + _PLOT_H * (1 - y_scale.share(y))))
             for x, y in points]  # fmt: skip
    line = " ".join(f"{x},{y}" for x, y in spots)
    base = HEIGHT - _BOTTOM
    area = f"{spots[0][0]},{base} {line} {spots[-1][0]},{base}" if spots else ""
    x_ticks = [Tick(_round(_LEFT + _PLOT_W * x_scale.share(x)), f"{short(x)}{x_unit}") for x in x_scale.ticks]
    return Chart(summary, x_ticks, _y_ticks(y_scale), line=line, area=area)


class Scale:
    """A linear scale over round numbers.

    Attributes:
        low, high: its ends.
        ticks: round numbers on it, both ends included.
    """

    def __init__(self, low: float, high: float, are_counts: bool = False):
        span = high - low if high > low else abs(high) or 1.0
        step = _round_step(span / 4)
        if are_counts:
            step = max(math.ceil(step), 1)
        first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
        self.low, self.high = first * step, last * step
        self.ticks = [i * step for i in range(first, last + 1)]

    def share(self, value: float) -> float:
        """Give the place of a value as a share of the scale; ends for what lies outside."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    def whisker(self, value: float, low: float, high: float) -> Whisker:
        """Place a value and its interval."""
        return Whisker(*(_round(100 * self.share(each)) for each in (value, low, high)))


def short(value: float) -> str:
    """Write a number for an axis: 1500 as 1.5k."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{suffix}"
    return f"{value:.4g}"


def _y_ticks(scale: Scale) -> list[Tick]:
    return [Tick(_round(_TOP + _PLOT_H * (1 - scale.share(y))), short(y)) for y in scale.ticks]


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * (1 - 1e-9))


def _round(value: float) -> float:
    return round(value, 2)
