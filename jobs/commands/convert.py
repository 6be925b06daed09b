"""`nanovllm convert`: a GGUF file to a Hugging Face directory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLE = "nanovllm convert model-q4_1.gguf ./my-model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("gguf", metavar="MODEL.gguf", type=Path, help="the GGUF file")
    parser.add_argument("directory", metavar="DIR", type=Path, help="where the Hugging Face directory goes")
    parser.add_argument("--dtype", default="auto", help="how weights are stored: auto, F32, F16, BF16")
    parser.add_argument("--overwrite", action="store_true", help="replace files that DIR already has")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def main(arguments: argparse.Namespace) -> int:
    """Convert, and say where the model is."""
    from nanovllm import convert_gguf

    convert_gguf(
        arguments.gguf,
        arguments.directory,
        dtype=arguments.dtype,
        progress=not arguments.quiet,
        overwrite=arguments.overwrite,
    )
    print(f"{arguments.directory} is ready: nanovllm generate {arguments.directory} PROMPT", file=sys.stderr)
    return 0
