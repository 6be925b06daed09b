"""The scorer of program code as text, and the finding of code in an answer. Nothing is run, imported or compiled."""

from __future__ import annotations

import textwrap
from typing import Any

from jobs.evaluation.scorers.targets import best

_FENCE = "```"


def fenced_code(text: str) -> str | None:
    """Give the content of the first block between lines of three backticks; one that is cut off counts to the end."""
    _, opened, rest = text.partition(_FENCE)
    _, line_end, body = rest.partition("\n")
    if not opened or not line_end:
        return None
    lines: list[str] = []
    for line in body.split("\n"):
        if line.lstrip().startswith(_FENCE):
            break
        lines.append(line)
    return "\n".join(lines)


def code_match(prediction: str, target: Any, *, line_comment: str | None = None, ignore_case: bool = False) -> float:
    """Say whether both are the same code but for layout that carries no meaning.

    The first fenced block counts if there is one. Line ends, tabs (4 spaces), white space at the end of lines, blank
    lines and an indent that all lines share make no difference.

    Args:
        prediction: an answer with code in it, or code alone.
        target: code, or a list of accepted ones.
        line_comment: what begins a comment, such as `#`; comments are then left out, unless in quotes on their line.
        ignore_case: compare in lower case, as for SQL.
    """

    def normalized(text: str) -> str:
        block = fenced_code(text)
        code = normalize_code(text if block is None else block, line_comment)
        return code.lower() if ignore_case else code

    wanted = normalized(prediction)
    return best(target, "code_match", lambda text: float(normalized(text) == wanted))


def normalize_code(code: str, line_comment: str | None = None) -> str:
    """Take out of a code what makes no difference, see `code_match`."""
    lines = code.replace("\r\n", "\n").expandtabs(4).split("\n")
    if line_comment:
        lines = [_without_comment(line, line_comment) for line in lines]
    return textwrap.dedent("\n".join(line.rstrip() for line in lines if line.strip()))


def _without_comment(line: str, mark: str) -> str:
    quote, position = "", 0
    while position < len(line):
        character = line[position]
        if quote:
            if character == "\\":
                position += 1
            elif character == quote:
                quote = ""
        elif line.startswith(mark, position):
            return line[:position]
        elif character in "\"'":
            quote = character
        position += 1
    return line
