"""Regular expressions of users and data files, so used that none of them can hold a run for ever.

Python's engine backtracks, so a pattern such as `(a+)+$` can take longer than anybody waits. Three limits: patterns
and texts have a greatest length, and a search that has used `MAX_SECONDS` of processor time ends in an error of its
row. The clock is the process's own (SIGVTALRM, which the engine looks at while it matches), because the alarm of real
time is the run's deadline. Outside the main thread, where Python takes no signals, only the lengths are limited.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TypeVar

from nanovllm import RequestError

MAX_PATTERN = 5_000
MAX_TEXT = 50_000
MAX_SECONDS = 5.0

Result = TypeVar("Result")


@lru_cache(maxsize=256)
def compile_pattern(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """Compile a pattern.

    Raises:
        ValueError: it is too long or no regular expression; the message says why.
    """
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"the pattern has {len(pattern):,} characters, at most {MAX_PATTERN:,} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of signs that may mean more in a later Python
            return re.compile(pattern, flags)
    except (re.error, OverflowError, RecursionError) as problem:
        raise ValueError(f"not a regular expression: {problem}") from None


def search(pattern: re.Pattern[str], text: str, full: bool = False) -> re.Match[str] | None:
    """Find the first match in the beginning of a text, or match the whole of it. Raises RequestError."""
    method = pattern.fullmatch if full else pattern.search
    return _in_time(pattern, lambda: method(text[:MAX_TEXT]))


def search_last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Find the last match in the end of a text. Raises RequestError."""
    return _in_time(pattern, lambda: _last(pattern.finditer(text[-MAX_TEXT:])))


def remove(pattern: re.Pattern[str], text: str) -> str:
    """Take all matches out of the beginning of a text. Raises RequestError."""
    return _in_time(pattern, lambda: pattern.sub("", text[:MAX_TEXT])) + text[MAX_TEXT:]


def _last(matches: Iterator[re.Match[str]]) -> re.Match[str] | None:
    last = None
    for match in matches:
        last = match
    return last


def _in_time(pattern: re.Pattern[str], work: Callable[[], Result]) -> Result:
    try:
        with _processor_time(MAX_SECONDS):
            return work()
    except _TimeIsOver:
        raise RequestError(
            "pattern_too_slow",
            f"the pattern {pattern.pattern[:60]!r} took more than {MAX_SECONDS:g} s on a text: write it without "
            "repetitions inside repetitions",
        ) from None


class _TimeIsOver(Exception):
    """The processor time of a search is used up."""


@contextlib.contextmanager
def _processor_time(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGVTALRM, _end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous or signal.SIG_DFL)


def _end(signum: int, frame: object) -> None:
    raise _TimeIsOver
