"""`nanovllm run-batch`: an OpenAI batch in, its responses out, as one file each.

A run like any other: its directory lies beside the output file, and the output file appears when the run is finished.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
from pathlib import Path

from jobs import exit_codes
from jobs.commands.arguments import auto_or_count, count
from nanovllm import ConfigError

EXAMPLE = "nanovllm run-batch -i batch.jsonl -o answers.jsonl --model ./demo-model"

RUN_SUFFIX = ".run"
"""What is appended to the output file's name to name the directory of the run."""

_JOB_FLAGS = ("model", "limit", "restart", "progress", "served_model_name")
_ENGINE_FLAGS = (
    "dtype", "kv_cache_dtype", "threads", "seed", "max_model_len", "max_num_seqs", "max_num_batched_tokens",
    "generation_config", "chat_template", "enable_prefix_caching",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags, with the names of `vllm run-batch` where it has them."""
    parser.add_argument("-i", "--input-file", metavar="F", required=True, help="lines of a batch, also .gz; - is stdin")
    parser.add_argument("-o", "--output-file", metavar="F", type=Path, required=True, help="file for the responses")
    parser.add_argument("--model", metavar="D", required=True, help="Hugging Face directory or hub id")
    parser.add_argument(
        "--served-model-name", metavar="S", nargs="+", help="names that lines may use for the model; default: any"
    )
    parser.add_argument("--dtype", metavar="T", help="how weights are kept: auto, float32, bfloat16, int8")
    parser.add_argument("--kv-cache-dtype", metavar="T", help="how keys and values are kept; auto: as the weights")
    parser.add_argument("--threads", metavar="N", type=auto_or_count, help="auto or a number")
    parser.add_argument("--seed", metavar="N", type=int, help="seeds the lines that bring no seed")
    parser.add_argument("--max-model-len", metavar="N", type=auto_or_count, help="prompt plus completion")
    parser.add_argument("--max-num-seqs", metavar="N", type=auto_or_count, help="most sequences in one step")
    parser.add_argument("--max-num-batched-tokens", metavar="N", type=auto_or_count, help="most tokens in one step")
    parser.add_argument(
        "--generation-config", metavar="G", help="auto, or none to ignore the model's sampling defaults"
    )
    parser.add_argument("--chat-template", metavar="T", help="name of a template, a file, or its text")
    parser.add_argument(
        "--enable-prefix-caching", action=argparse.BooleanOptionalAction, help="share equal beginnings of prompts"
    )
    parser.add_argument("--limit", metavar="N", type=count, help="read only the first N lines")
    parser.add_argument("--restart", action="store_true", default=None, help="forget the results of an earlier run")
    parser.add_argument("--progress", choices=["auto", "bar", "plain", "json", "none"], help="how to show progress")
    parser.add_argument(
        "--set", metavar="a.b=v", action="append", default=[], help="set any key of a job file, as in --set limit=3"
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the batch and put the results under the name that was asked for."""
    from jobs.job_file import Override, job_from_flags, parse_set
    from jobs.run import run_job

    output: Path = arguments.output_file
    directory = output.with_name(output.name + RUN_SUFFIX)
    _check_output(output, directory, bool(arguments.restart))
    overrides = [
        Override(("input_format",), "openai_batch", "run-batch"),
        Override(("input",), arguments.input_file, "--input-file"),
    ]
    for folder, names in (((), _JOB_FLAGS), (("engine",), _ENGINE_FLAGS)):
        for name in names:
            value = getattr(arguments, name)
            if value is not None:
                overrides.append(Override((*folder, name), value, "--" + name.replace("_", "-")))
    overrides += [parse_set(text) for text in arguments.set]
    # not by its key: braces in a file's name are no placeholders
    job = dataclasses.replace(job_from_flags(output, overrides), output=directory.absolute())
    code = run_job(job)
    if code in (exit_codes.OK, exit_codes.TOO_MANY_ERRORS):
        _publish(directory / "results.jsonl", output)
    return code


def _check_output(output: Path, directory: Path, restart: bool) -> None:
    if output.is_dir():
        raise ConfigError(f"--output-file {output} is a folder: name a file")
    if not output.parent.is_dir():
        raise ConfigError(f"--output-file {output}: there is no folder {output.parent}")
    if output.exists() and not directory.exists() and not restart:
        raise ConfigError(
            f"--output-file {output} exists, and no run beside it ({directory.name}) has written it: choose another "
            "name, or give --restart to replace it"
        )


def _publish(results: Path, output: Path) -> None:
    """Give the results their second name, all or nothing; both names are one file where the disk can do that."""
    if not results.exists():
        return
    temporary = output.with_name(output.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(results, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(results, temporary)
    temporary.replace(output)
