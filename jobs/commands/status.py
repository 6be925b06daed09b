"""`nanovllm status`: where a run stands, seen from outside."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "nanovllm status runs/articles"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("run", metavar="DIR", type=Path, help="the output directory of a run")
    parser.add_argument("--json", action="store_true", help="print status.json with the verdict, for programs")


def main(arguments: argparse.Namespace) -> int:
    """Print one line, and end in the code of the run: its own once it ended, 6 at work, 1 killed, 2 no run."""
    import time

    from jobs import json_text
    from jobs.status import describe, judge

    code, values = judge(arguments.run)
    print(json_text.dumps(values) if arguments.json else describe(arguments.run, values, time.time()))
    return code
