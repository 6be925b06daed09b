"""`nanovllm compare`: is one evaluation better than another, and in which rows?"""

from __future__ import annotations

import argparse
from pathlib import Path

from jobs import exit_codes

EXAMPLE = "nanovllm compare runs/gsm8k-base runs/gsm8k-tuned --metric exact_match"

_DEFAULT_FLIPS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("a", metavar="DIR_A", type=Path, help="the output directory of a finished evaluation")
    parser.add_argument("b", metavar="DIR_B", type=Path, help="that of another one over the same rows")
    parser.add_argument("--metric", metavar="NAME", help="compare this metric; default: all that both have")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs; with all flipped rows")
    parser.add_argument(
        "--flips",
        metavar="N",
        type=_all_or_number,
        help=f"how many flipped rows to name, or all; default: {_DEFAULT_FLIPS}",
    )


def main(arguments: argparse.Namespace) -> int:
    """Print the comparison."""
    from jobs import json_text
    from jobs.evaluation.comparison import compare_runs
    from jobs.evaluation.comparison_text import as_json, describe

    comparison = compare_runs(arguments.a, arguments.b, arguments.metric)
    num_flips = arguments.flips
    if num_flips is None:
        num_flips = "all" if arguments.json else _DEFAULT_FLIPS
    limit = None if num_flips == "all" else num_flips
    if arguments.json:
        print(json_text.dumps(as_json(comparison, limit), indent=2))
    else:
        print(describe(comparison, limit))
    return exit_codes.OK


def _all_or_number(text: str) -> int | str:
    if text == "all":
        return text
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected a number of rows or all, found {text!r}")
    return int(text)
