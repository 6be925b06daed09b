"""`nanovllm report`: a finished run as one HTML page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jobs.commands.arguments import count

EXAMPLE = "nanovllm report runs/articles -o articles.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="DIR", type=Path, help="the output directory of a finished run")
    parser.add_argument("--compare", metavar="DIR_B", type=Path, help="a second run; the page shows what differs")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="the page; default: DIR/report.html")
    parser.add_argument(
        "--rows", metavar="N", type=_all_or_count, default=2000, help="how many rows to show, or all; default: 2000"
    )


def main(arguments: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from jobs.report.page import write_report

    num_rows = None if arguments.rows == "all" else arguments.rows
    path = write_report(arguments.run, arguments.compare, arguments.output, num_rows)
    print(f"{arguments.run}: report: {path}", file=sys.stderr)
    return 0


def _all_or_count(text: str) -> int | str:
    return text if text == "all" else count(text)
