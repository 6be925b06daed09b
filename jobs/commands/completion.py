"""`nanovllm completion`: a script that lets a shell complete commands, options, choices and files."""

from __future__ import annotations

import argparse
import importlib

EXAMPLE = "nanovllm completion bash > ~/.local/share/bash-completion/completions/nanovllm"

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the argument."""
    parser.add_argument("shell", choices=SHELLS, help="the shell; the script's first lines say where it goes")


def main(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from jobs.cli import build_parser
    from jobs.completion.tree import read_commands

    writer = importlib.import_module(f"jobs.completion.{arguments.shell}")
    print(writer.script(*read_commands(build_parser())), end="")
    return 0
