"""`nanovllm merge`: the runs of a job's shards become one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLE = "nanovllm merge runs/articles runs/articles-0-of-2 runs/articles-1-of-2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("out", metavar="OUT", type=Path, help="the directory to make")
    parser.add_argument("runs", metavar="DIR", type=Path, nargs="+", help="the directories of all shards")
    parser.add_argument("--check", action="store_true", help="only see whether they fit; write nothing")


def main(arguments: argparse.Namespace) -> int:
    """Join the shards; ends like a run of all rows would have."""
    from jobs.merging import merge_runs

    manifest = merge_runs(arguments.out, arguments.runs, arguments.check)
    counts = manifest["counts"]
    where = "nothing is written" if arguments.check else f"results: {arguments.out / 'results.jsonl'}"
    print(
        f"{arguments.out}: {counts['rows']} rows of {len(arguments.runs)} shards: {counts['ok']} ok, "
        f"{counts['errors']} errors, {counts['skipped']} skipped; {where}",
        file=sys.stderr,
    )
    return manifest["exit_code"]
