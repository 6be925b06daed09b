"""Exit codes of every command. Scripts rely on them; they never change meaning."""

OK = 0
INTERNAL_FAILURE = 1
UNUSABLE_INPUT = 2
TOO_MANY_ERRORS = 3
GATE_FAILED = 4
DEADLINE = 5
LOCKED = 6


def for_signal(signum: int) -> int:
    """Give the code that shells use for a process that a signal ended: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + signum
