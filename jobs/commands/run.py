"""`nanovllm run`: a job file with flags over it."""

from __future__ import annotations

import argparse
from pathlib import Path

from jobs.commands.arguments import count

EXAMPLE = "nanovllm run configs/quickstart.yaml --set sampling.max_tokens=32 --limit 4"

_FLAGS = ("model", "input", "output", "limit", "restart", "shard", "progress")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; each is also a key of the job file, and the flag wins."""
    parser.add_argument("job", metavar="JOB.yaml", type=Path, help="the job file")
    parser.add_argument("--model", metavar="D", help="Hugging Face directory or hub id")
    parser.add_argument("--input", metavar="F", action="append", help="file or glob, - is stdin; may be given again")
    parser.add_argument("--output", metavar="D", help="directory of the run")
    parser.add_argument(
        "--set", metavar="a.b=v", action="append", default=[], help="set any key, as in --set sampling.seed=7"
    )
    parser.add_argument("--limit", metavar="N", type=count, help="read only the first N rows")
    parser.add_argument("--restart", action="store_true", default=None, help="forget the results of an earlier run")
    parser.add_argument("--shard", metavar="I/N", help="do part I of N of the rows, split by their ids")
    parser.add_argument("--progress", choices=["auto", "bar", "plain", "json", "none"], help="how to show progress")


def main(arguments: argparse.Namespace) -> int:
    """Run the job."""
    from jobs.job_file import Override, load_job, parse_set
    from jobs.run import run_job

    overrides = [parse_set(text) for text in arguments.set]
    for name in _FLAGS:
        value = getattr(arguments, name)
        if value is not None:
            overrides.append(Override((name,), value, f"--{name}"))
    return run_job(load_job(arguments.job, overrides))
