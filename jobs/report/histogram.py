"""Count whole numbers in bounded memory, and cut the counts into a few bins for drawing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

_MAX_KEYS = 4096
_MAX_BINS = 24


@dataclass(frozen=True, slots=True)
class Bin:
    """How many values lie in `low` to `high`, both included."""

    low: int
    high: int
    count: int


class Histogram:
    """Counts of values of at least 0.

    Exact while there are at most 4,096 different values; then neighbours are counted together, two by two, so that a
    value is known to one part in some 2,000 of the range.

    Attributes:
        num, total: how many values, and their sum; exact.
        smallest, largest: exact; None without values.
    """

    def __init__(self):
        self.num = self.total = 0
        self.smallest: int | None = None
        self.largest: int | None = None
        self._shift = 0
        self._counts: Counter[int] = Counter()

    def add(self, value: int) -> None:
        """Count a value."""
        self.num += 1
        self.total += value
        self.smallest = value if self.smallest is None else min(self.smallest, value)
        self.largest = value if self.largest is None else max(self.largest, value)
        self._counts[value >> self._shift] += 1
        while len(self._counts) > _MAX_KEYS:
            self._shift += 1
            folded: Counter[int] = Counter()
            for key, count in self._counts.items():
                folded[key >> 1] += count
            self._counts = folded

    @property
    def mean(self) -> float:
        """The mean; 0 without values."""
        return self.total / self.num if self.num else 0.0

    def quantile(self, share: float) -> int | None:
        """Give the smallest value that at least `share` of all values do not exceed; None without values."""
        if not self.num:
            return None
        seen = 0
        for key in sorted(self._counts):
            seen += self._counts[key]
            if seen >= share * self.num:
                return min(max(key << self._shift, self.smallest), self.largest)
        return self.largest

    def bins(self) -> list[Bin]:
        """Cut the range into at most 24 bins of one round width."""
        if not self.num:
            return []
        width = _round_width(self.largest - self.smallest + 1)
        first, last = self.smallest // width, self.largest // width
        counts = [0] * (last - first + 1)
        for key, count in self._counts.items():
            value = max(key << self._shift, self.smallest)
            counts[value // width - first] += count
        return [Bin((first + i) * width, (first + i + 1) * width - 1, count) for i, count in enumerate(counts)]


def _round_width(span: int) -> int:
    """Give the smallest of 1, 2, 5, 10, 20, … with which `span` values need at most 24 bins, an unaligned start too."""
    power = 1
    while True:
        for step in (1, 2, 5):
            if span <= (_MAX_BINS - 1) * step * power:
                return step * power
        power *= 10
