"""Write docs/cli.md from the parsers of the commands, so that it says what `--help` says.

The text is made from the parsers' own data and not from printed help, whose layout differs between versions of Python.
"""

import argparse
import sys
from pathlib import Path

from jobs.cli import build_parser

HEADER = """# Commands

`nanovllm COMMAND …`, or the same as `python -m jobs COMMAND …`. `nanovllm COMMAND --help` shows what is below.
This file is made by `make docs`; a test fails when it differs from the commands.
"""


def is_positional(action: argparse.Action) -> bool:
    """Tell an argument from an option."""
    return not action.option_strings


def value_name(action: argparse.Action) -> str:
    """Return how help calls the action's value, empty when it takes none."""
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.metavar or action.dest.upper()


def spelling(action: argparse.Action) -> str:
    """Return an action as it is typed."""
    value = value_name(action)
    if is_positional(action):
        return f"[{value}]" if action.nargs == "?" else value
    return ", ".join(action.option_strings) + (f" {value}" if value else "")


def own_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return a parser's arguments and options without --help and the commands."""
    kinds = (argparse._HelpAction, argparse._SubParsersAction)
    return [action for action in parser._actions if not isinstance(action, kinds)]


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command, in their order."""
    return next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))


def table(actions: list[argparse.Action]) -> list[str]:
    """Lay out actions as a Markdown table."""
    lines = ["| argument or option | meaning |", "|---|---|"]
    for action in actions:
        cells = (f"`{spelling(action)}`", (action.help or "").replace("%%", "%"))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def section(name: str, parser: argparse.ArgumentParser) -> list[str]:
    """Describe one command."""
    actions = own_actions(parser)
    usage = " ".join(["nanovllm", name, *(spelling(a) for a in actions if is_positional(a)), "[options]"])
    example = parser.epilog.removeprefix("example: ")
    return [
        f"## nanovllm {name}", "", parser.description, "", f"Usage: `{usage}`", "", *table(actions), "",
        "Example:", "", "```sh", example, "```", "",
    ]  # fmt: skip


def render() -> str:
    """Return the whole page."""
    parser = build_parser()
    lines = [HEADER, "## Options of nanovllm itself", "", *table(own_actions(parser)), ""]
    for name, command in commands(parser).items():
        lines += section(name, command)
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), "utf-8")
