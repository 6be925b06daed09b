"""What can be typed after `nanovllm`, as plain data for the writers of completion scripts.

Owns the reading of argparse's parsers, and which values are files or folders. Knows no shell.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# Metavars tell what a value is; the parsers have no other word for it.
_DIRECTORY_METAVARS = frozenset(("D", "DIR", "DIR_A", "DIR_B", "OUT", "MODEL"))
_FILE_METAVARS = frozenset(("F", "FILE"))
_SAME_SUFFIX = {".yaml": (".yaml", ".yml")}


@dataclass(frozen=True, slots=True)
class Argument:
    """One option or positional argument.

    Attributes:
        flags: how the option is written; empty for a positional.
        summary: its help.
        kind: what its value is: nothing at all, one of `values`, a file, a directory, or some text.
        metavar: what its value is called.
        values: the choices.
        suffixes: how the names of its files end; empty for any.
        repeats: whether it may be given again.
    """

    flags: tuple[str, ...]
    summary: str
    kind: Literal["none", "choice", "file", "directory", "text"]
    metavar: str = ""
    values: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """A command; the one without a name is `nanovllm` itself."""

    name: str
    summary: str
    options: tuple[Argument, ...]
    positionals: tuple[Argument, ...] = ()


def read_commands(parser: argparse.ArgumentParser) -> tuple[Command, list[Command]]:
    """Give `nanovllm` itself and its commands in their order."""
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    summaries = {action.dest: action.help or "" for action in subparsers._choices_actions}
    commands = [_command(name, summaries.get(name, ""), each) for name, each in subparsers.choices.items()]
    return _command("", parser.description or "", parser), commands


def _command(name: str, summary: str, parser: argparse.ArgumentParser) -> Command:
    actions = [action for action in parser._actions if not isinstance(action, argparse._SubParsersAction)]
    arguments = [_argument(action) for action in actions if action.help != argparse.SUPPRESS]
    return Command(
        name,
        summary,
        tuple(argument for argument in arguments if argument.flags),
        tuple(argument for argument in arguments if not argument.flags),
    )


def _argument(action: argparse.Action) -> Argument:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    suffix = re.search(r"\.[a-z0-9]+$", metavar)
    values: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    if action.nargs == 0:
        kind = "none"
    elif action.choices is not None:
        kind, values = "choice", tuple(map(str, action.choices))
    elif metavar in _DIRECTORY_METAVARS:
        kind = "directory"
    elif suffix:
        kind, suffixes = "file", _SAME_SUFFIX.get(suffix[0], (suffix[0],))
    else:
        kind = "file" if action.type is Path or metavar in _FILE_METAVARS else "text"
    # only actions that append, and positionals of any number, take another
    repeats = isinstance(action, argparse._AppendAction) or action.nargs in ("*", "+")
    summary = (action.help or "").replace("%%", "%")
    return Argument(tuple(action.option_strings), summary, kind, metavar, values, suffixes, repeats)
