"""Solved examples for prompts: which rows they are, and that a row is never its own.

Owns the choice. Two rows are the same when they ask the same question, whatever file they stand in and whatever else
they hold. The random choice depends on the seed and on the questions alone, not on the order of the file, on the row's
place, or on what ran before; so a resumed run, a shard and a run with more rows choose alike.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jobs.evaluation.settings import FewShotSettings
from jobs.readers import RawRow
from nanovllm import ConfigError, RequestError

LARGEST_POOL = 10_000
"""Examples that are kept in memory for a choice that is made anew for each row."""


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its answer."""

    question: str
    answer: str


class FewShot:
    """The examples of one evaluation.

    Args:
        settings: how many, and how they are chosen.
        rows: the rows to choose from.
        solve: gives a row's question as rows of the evaluation ask it, and the example; raises RequestError.
        is_own: whether rows of the evaluation are among them.

    Raises:
        ConfigError: there are too few examples.
    """

    def __init__(
        self,
        settings: FewShotSettings,
        rows: Iterator[RawRow],
        solve: Callable[[dict[str, Any]], tuple[str, Example]],
        is_own: bool,
    ):
        self._settings = settings
        self._problem: str | None = None
        solved = self._solved(rows, solve)
        if settings.sampler == "first":
            pool = _first(solved, settings.num + 1)
        elif settings.fixed:
            pool = _lowest(solved, settings.num + 1, settings.seed)
        else:
            pool = _lowest(solved, LARGEST_POOL, settings.seed)
        self._keys = [key for key, _ in pool]
        self._examples = [example for _, example in pool]
        needed = settings.num + is_own
        if len(pool) < needed:
            beside = " beside the row itself" if is_own else ""
            cause = "" if self._problem is None else f" (the first that cannot be used: {self._problem})"
            raise ConfigError(
                f"eval.few_shot: {settings.num} examples are asked for{beside}, and there are {len(pool)} different "
                f"ones in all{cause}: ask for fewer, or give another few_shot.input"
            )

    def choose(self, question: str) -> list[Example]:
        """Give the examples for a row that asks `question`.

        Raises:
            RequestError: without the row itself too few are left.
        """
        key = _key(question)
        num = self._settings.num
        if self._settings.sampler == "first" or self._settings.fixed:
            chosen = [i for i, other in enumerate(self._keys) if other != key][:num]
        else:
            chosen = self._draw(key, num)
        if len(chosen) < num:
            raise RequestError("too_few_examples", f"only {len(chosen)} of {num} examples are not this row itself")
        return [self._examples[i] for i in chosen]

    def _draw(self, key: str, num: int) -> list[int]:
        """Draw anew for one row; `random()` is the one method whose numbers Python promises to keep."""
        source = random.Random(_rank(self._settings.seed, key))
        left = [i for i, other in enumerate(self._keys) if other != key]
        chosen = []
        for _ in range(min(num, len(left))):
            place = int(source.random() * len(left))
            left[place], left[-1] = left[-1], left[place]
            chosen.append(left.pop())
        return chosen

    def _solved(
        self, rows: Iterator[RawRow], solve: Callable[[dict[str, Any]], tuple[str, Example]]
    ) -> Iterator[tuple[str, Example]]:
        for raw in rows:
            if raw.problem is not None or not isinstance(raw.value, dict):
                self._problem = self._problem or f"{raw.place()} {raw.problem or 'is not an object with columns'}"
                continue
            try:
                question, example = solve(raw.value)
            except RequestError as error:
                self._problem = self._problem or f"{raw.place()}: {error.message}"
                continue
            yield _key(question), example


def _first(solved: Iterator[tuple[str, Example]], num: int) -> list[tuple[str, Example]]:
    found: dict[str, Example] = {}
    for key, example in solved:
        found.setdefault(key, example)
        if len(found) == num:
            break
    return list(found.items())


def _lowest(solved: Iterator[tuple[str, Example]], num: int, seed: int) -> list[tuple[str, Example]]:
    """Keep the examples of the lowest ranks, in their order, holding no more than these in memory."""
    heap: list[tuple[int, str]] = []
    kept: dict[str, Example] = {}
    for key, example in solved:
        if key in kept:
            continue
        rank = -_rank(seed, key)
        if len(heap) < num:
            heapq.heappush(heap, (rank, key))
        elif rank > heap[0][0]:
            del kept[heapq.heapreplace(heap, (rank, key))[1]]
        else:
            continue
        kept[key] = example
    return [(key, kept[key]) for _, key in sorted(heap, reverse=True)]


def _rank(seed: int, key: str) -> int:
    data = hashlib.blake2b(f"{seed}\n{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(data, "little")


def _key(question: str) -> str:
    return " ".join(question.split()).casefold()
