"""A trial of a grammar in a process of its own, with little memory and little time.

Some short grammars take all memory that there is before the compiler's own limits notice, and a failed allocation ends
the process: a run would lose what is in flight, and meet the same row again when it is continued. So whoever compiles
a grammar that may be of this kind tries it here first. Knows neither settings nor requests.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

CPU_SECONDS = 10
MEMORY_BYTES = 512 << 20
_WALL_SECONDS = 12 * CPU_SECONDS  # for machines that cannot limit processor time, or are very busy
_END_SECONDS = 1.0
_IDLE_SECONDS = 60  # then a child that nobody asks ends and gives its memory back
# The compiler recurses over what refers to what; most of this is never touched.
_STACK_BYTES = 256 << 20
_STACK_LOCK = threading.Lock()
_CHILD = "import sys; sys.path.pop(0); from nanovllm.grammar_trial import serve; serve()"


class GrammarTrial:
    """A child process that compiles grammars and says what is wrong with them; started with the first of them.

    Args:
        tokenizer: arguments of `LLTokenizer` as JSON values; None tries grammars without a vocabulary.
    """

    def __init__(self, tokenizer: dict[str, Any] | None = None):
        self._setup = json.dumps(tokenizer)
        self._child: subprocess.Popen | None = None
        self._lock = threading.Lock()

    def problem(self, source: str) -> str:
        """Return why a grammar cannot be compiled, in llguidance's words; empty if it can."""
        with self._lock:
            return self._problem(source)

    def _problem(self, source: str) -> str:
        if self._child is not None and self._child.poll() is not None:  # it was idle for long, or somebody ended it
            self._drop()
        answer = self._ask(source)
        if answer is None and self._drop() == 0:  # it was about to end by itself
            answer = self._ask(source)
        if answer is None:
            self._drop()
            return f"its compilation takes more than {MEMORY_BYTES >> 20} MiB or {CPU_SECONDS} s; make it simpler"
        return json.loads(answer)

    def _ask(self, source: str) -> bytes | None:
        """Return the child's answer, None if it has ended or takes too long."""
        if self._child is None:
            self._start()
        try:
            self._write(source)
            return _read_line(self._child.stdout.fileno(), bytearray(), _WALL_SECONDS)
        except BrokenPipeError:
            return None

    def _drop(self) -> int | None:
        """End the child if there is one; returns its exit code."""
        child, self._child = self._child, None
        if child is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):  # its output ends a little before itself
            child.wait(_END_SECONDS)
        code = child.returncode
        self._end(child, os.getpid())
        return code

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._child = subprocess.Popen(
            [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=environment, start_new_session=True,
        )  # fmt: skip
        weakref.finalize(self, self._end, self._child, os.getpid())
        with contextlib.suppress(BrokenPipeError):  # shows when it is asked
            self._child.stdin.write(self._setup.encode() + b"\n")

    def _write(self, source: str) -> None:
        self._child.stdin.write(json.dumps(source).encode() + b"\n")
        self._child.stdin.flush()

    @staticmethod
    def _end(child: subprocess.Popen, owner: int) -> None:
        if os.getpid() != owner:  # a fork of the process that it belongs to
            return
        child.kill()
        with contextlib.suppress(BrokenPipeError):  # what was not written is not wanted any more
            child.stdin.close()
        child.stdout.close()
        child.wait()


def try_to_compile(attempt: Callable[[], str]) -> str:
    """Return the problem that an attempt returns or raises, empty if there is none; it has a deep stack."""
    problems: list[str] = []

    def run() -> None:
        try:
            problems.append(attempt())
        except BaseException as error:  # a panic of the library is no Exception
            problems.append(str(error) or type(error).__name__)

    thread = threading.Thread(target=run, daemon=True)
    with _STACK_LOCK:
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    return problems[0]


def compiled(tokenizer: Any, source: str) -> Any:
    """Return the matcher of a grammar, its first mask worked out; it may have an error."""
    import llguidance

    # The error texts of the default show the whole state.
    limits = llguidance.LLParserLimits(verbose_errors=False)
    matcher = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()  # a grammar without any text, or beyond the limits of a step, shows here
    return matcher


def serve() -> None:
    """Be the child: read a tokenizer and then grammars, one a line, and answer each with its problem."""
    import llguidance

    buffer = bytearray()
    setup = json.loads(_read_line(sys.stdin.fileno(), buffer, _WALL_SECONDS) or "null")
    tokenizer = None if setup is None else llguidance.LLTokenizer(**setup)
    limits = llguidance.LLParserLimits(verbose_errors=False)
    _limit_memory()
    while line := _read_line(sys.stdin.fileno(), buffer, _IDLE_SECONDS):
        source = json.loads(line)
        _limit_time()
        if tokenizer is None:
            problem = try_to_compile(lambda: llguidance.LLMatcher.validate_grammar(source, None, limits=limits))  # noqa: B023
        else:
            problem = try_to_compile(lambda: compiled(tokenizer, source).get_error())  # noqa: B023
        sys.stdout.write(json.dumps(problem) + "\n")
        sys.stdout.flush()


def _read_line(descriptor: int, buffer: bytearray, seconds: float) -> bytes | None:
    """Return the next line, None when the other side has ended or the time is over; `buffer` keeps what is left."""
    deadline = time.monotonic() + seconds
    while (end := buffer.find(b"\n")) < 0:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        data = os.read(descriptor, 1 << 16) if ready else b""
        if not data:
            return None
        buffer += data
    line = bytes(buffer[:end])
    del buffer[: end + 1]
    return line


def _limit_memory() -> None:
    """Allow so much more than there is now; where the system cannot, the compiler's own limits are left."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES + 2 * _STACK_BYTES, resource.RLIM_INFINITY))
    except (ImportError, OSError, ValueError):
        return


def _limit_time() -> None:
    """Allow so much more processor time than was used until now."""
    try:
        import resource

        limit = int(time.process_time()) + CPU_SECONDS + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
    except (ImportError, OSError, ValueError):
        return
