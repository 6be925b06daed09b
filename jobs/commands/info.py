"""`nanovllm info`: the machine, or a model, as aligned lines or JSON."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

EXAMPLE = "nanovllm info ./demo-model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="Hugging Face directory or hub id; nothing: the machine"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(arguments: argparse.Namespace) -> int:
    """Print the facts."""
    from nanovllm import machine_info, model_info, resolve_model

    facts = machine_info() if arguments.model is None else model_info(resolve_model(arguments.model))
    if arguments.json:
        from jobs import json_text

        print(json_text.dumps(facts, indent=2))
    else:
        print("\n".join(aligned_lines(facts)))
    return 0


def aligned_lines(facts: Mapping[str, Any]) -> list[str]:
    """Lay facts out as two columns; a mapping inside gives dotted names."""
    pairs = list(_flatten(facts, ""))
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{name:<{width}}  {value}".rstrip() for name, value in pairs]


def _flatten(facts: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _show(value)


def _show(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_show(item) for item in value)
    return str(value)
