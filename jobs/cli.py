"""The `nanovllm` command: flags in, exit code out.

Imports no engine and no parser of files until a command runs, so that `--help` is instant. Every way a command can
fail ends here in one sentence on stderr and an exit code.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import signal
import sys
import traceback
import warnings

import nanovllm
from jobs import exit_codes

# What stdout says when it leads to a disk that takes no more; the errors of files have their names.
_TAKES_NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

# command name -> (module, one line for the overview)
COMMANDS = {
    "run": ("jobs.commands.run", "run a job file: prompts in, results out"),
    "status": ("jobs.commands.status", "show where a run stands, from outside"),
    "report": ("jobs.commands.report", "write a finished run as one HTML page"),
    "compare": ("jobs.commands.compare", "compare two evaluations row by row"),
    "merge": ("jobs.commands.merge", "join the runs of a job's shards"),
    "run-batch": ("jobs.commands.run_batch", "answer an OpenAI batch: its lines in, response lines out"),
    "check": ("jobs.commands.check", "look at every row of a job file without generating"),
    "generate": ("jobs.commands.generate", "generate from one prompt"),
    "convert": ("jobs.commands.convert", "turn a GGUF file into a Hugging Face directory"),
    "fetch-demo": ("jobs.commands.fetch_demo", "get the small demo model"),
    "lm-eval": ("jobs.commands.lm_eval", "run tasks of lm-evaluation-harness"),
    "bench": ("jobs.commands.bench", "measure a model's speed on this machine"),
    "info": ("jobs.commands.info", "show the machine, or a model"),
    "completion": ("jobs.commands.completion", "print a script that lets a shell complete commands"),
}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps examples on one line and flags beside their help."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="nanovllm",
        description="Offline batch generation with language models on ordinary CPUs.",
        epilog="example: nanovllm generate ./demo-model 'What is rain?' --chat --max-tokens 40",
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nanovllm {nanovllm.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module_name, summary) in COMMANDS.items():
        module = importlib.import_module(module_name)
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example: {module.EXAMPLE}",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(main=module.main)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command and give its exit code."""
    _replace_closed_streams()
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said what there is to say
        return stop.code if isinstance(stop.code, int) else exit_codes.UNUSABLE_INPUT
    except KeyboardInterrupt:
        _say("nanovllm: interrupted")
        return exit_codes.for_signal(signal.SIGINT)
    name = f"nanovllm {arguments.command}"
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _log_warning
            code = arguments.main(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_output()
        return exit_codes.OK
    except KeyboardInterrupt:
        _say(f"{name}: interrupted")
        return exit_codes.for_signal(signal.SIGINT)
    except (nanovllm.UsageError, nanovllm.RequestError) as error:
        _say(f"{name}: {error}")
        return exit_codes.UNUSABLE_INPUT
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in _TAKES_NO_MORE:
            _drop_output()
            _say(f"{name}: the output cannot be written: {error.strerror}")
            return exit_codes.UNUSABLE_INPUT
        _say(traceback.format_exc().rstrip())
        _say(f"{name}: internal failure ({type(error).__name__}); the traceback is above")
        return exit_codes.INTERNAL_FAILURE


def _log_warning(message: Warning | str, *place: object) -> None:
    """Say a warning without its place in the source; a run shows it and has it in its log."""
    logging.getLogger("nanovllm").warning("%s", message)


def _replace_closed_streams() -> None:
    """Give closed standard streams a place to write to; Python has None there, and print would pick another stream."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123  (open until the end)


def _drop_output() -> None:
    """Drop what stdout does not take: nobody reads any more, as under `| head`, or a disk is full."""
    # Python flushes stdout once more at exit; it must find something that takes the rest.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr)
    except (OSError, ValueError):
        pass  # nobody reads stderr either; the exit code still tells
