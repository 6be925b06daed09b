"""`nanovllm generate`: one prompt, its completion on stdout."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from jobs.commands.arguments import auto_or_count, count
from nanovllm import ConfigError

EXAMPLE = "nanovllm generate ./demo-model 'Name three rivers.' --chat --temperature 0 --max-tokens 40"

_SAMPLING_FLAGS = (
    ("max-tokens", int, "N", "most tokens to generate"),
    ("temperature", float, "T", "0 is greedy"),
    ("top-p", float, "P", "keep the most likely tokens up to this probability"),
    ("top-k", int, "K", "keep the K most likely tokens"),
    ("min-p", float, "P", "drop tokens below P times the best one's probability"),
    ("typical-p", float, "P", "keep the most typical tokens up to this probability"),
    ("repetition-penalty", float, "R", "above 1 discourages tokens of prompt and completion"),
    ("presence-penalty", float, "R", "discourages tokens that the completion has"),
    ("frequency-penalty", float, "R", "discourages tokens by how often the completion has them"),
    ("seed", int, "S", "makes sampling repeatable"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("model", metavar="MODEL", help="Hugging Face directory or hub id")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", default="-", help="the prompt; - or nothing reads stdin")
    parser.add_argument("--chat", action="store_true", help="send the prompt through the chat template")
    parser.add_argument("--system", metavar="TEXT", help="system message (with --chat)")
    parser.add_argument("--stream", action="store_true", help="print text as it becomes certain")
    for name, kind, metavar, text in _SAMPLING_FLAGS:
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
    parser.add_argument("--stop", metavar="TEXT", action="append", help="end at this text; may be given again")
    structured = parser.add_mutually_exclusive_group()
    structured.add_argument("--json-schema", metavar="FILE", type=Path, help="the text is JSON that conforms to it")
    structured.add_argument("--regex", metavar="R", help="the text matches it")
    structured.add_argument("--choice", metavar="TEXT", action="append", help="the text is one of these; give it again")
    parser.add_argument("--top-logits", metavar="N", type=count, help="show the N best next tokens instead")
    parser.add_argument("--dtype", default="auto", help="how weights are kept: auto, float32, bfloat16, int8")
    parser.add_argument("--threads", type=auto_or_count, default="auto", metavar="N", help="auto or a number")
    parser.add_argument(
        "--max-model-len", type=auto_or_count, default="auto", metavar="N", help="prompt plus completion"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print one line of statistics on stderr")


def main(arguments: argparse.Namespace) -> int:
    """Generate and print."""
    from nanovllm import LLM, SamplingParams, check_structured_outputs, resolve_model

    if arguments.system is not None and not arguments.chat:
        raise ConfigError("--system needs --chat: a system message is part of a chat")
    text = _prompt_text(arguments.prompt)
    given = _given_sampling(arguments)
    # what is wrong is said before the model is loaded
    check_structured_outputs(SamplingParams.from_dict(given))
    llm = LLM(
        resolve_model(arguments.model),
        dtype=arguments.dtype,
        threads=arguments.threads,
        max_model_len=arguments.max_model_len,
    )
    prompt = _prompt(llm, text, arguments)
    if arguments.top_logits is not None:
        _print_top_logits(llm.top_logits(prompt, arguments.top_logits))
        return 0
    params = SamplingParams.from_dict(given, base=llm.default_sampling_params())
    began = time.monotonic()
    if arguments.stream:
        _print_stream(llm, prompt, params)
    else:
        _print_whole(llm, prompt, params)
    if arguments.verbose:
        _print_statistics(llm, time.monotonic() - began)
    return 0


def _prompt_text(argument: str) -> str:
    if argument != "-":
        text, source = argument, "PROMPT"
    else:
        if sys.stdin.isatty():
            raise ConfigError("no prompt: give PROMPT, or send it through stdin")
        # the line end that echo and editors add is not part of the prompt
        text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
        source = "stdin"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{source} is not valid UTF-8 at character {error.start}") from None
    return text


def _given_sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    names = [name.replace("-", "_") for name, *_ in _SAMPLING_FLAGS] + ["stop"]
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.json_schema is not None:
        from jobs.structured_files import read_schema

        given["structured_outputs"] = {"json": read_schema(arguments.json_schema, "--json-schema")}
    for name in ("regex", "choice"):
        if getattr(arguments, name) is not None:
            given["structured_outputs"] = {name: getattr(arguments, name)}
    return given


def _prompt(llm: Any, text: str, arguments: argparse.Namespace) -> Any:
    if not arguments.chat:
        return text
    messages = [{"role": "user", "content": text}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    _, ids = llm.tokenizer.encode_chat(messages, add_generation_prompt=True)
    return {"prompt_token_ids": ids}


def _print_whole(llm: Any, prompt: Any, params: Any) -> None:
    from nanovllm import Request

    for output in llm.generate_iter([Request(prompt=prompt, sampling_params=params, request_id="0")]):
        if output.error is not None:
            raise output.error
        for completion in output.outputs:
            print(completion.text)


def _print_stream(llm: Any, prompt: Any, params: Any) -> None:
    for piece in llm.generate_stream(prompt, params):
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()


def _print_top_logits(rows: list[tuple[int, float, str]]) -> None:
    for token_id, logit, token in rows:
        print(f"{token_id:>8}  {logit:>12.6f}  {token!r}")


def _print_statistics(llm: Any, seconds: float) -> None:
    stats = llm.stats()
    read = stats.get if isinstance(stats, dict) else lambda name: getattr(stats, name)
    prompt_tokens, tokens = read("prompt_tokens"), read("completion_tokens")
    line = f"{prompt_tokens} prompt tokens, {tokens} completion tokens, {seconds:.2f} s, {tokens / seconds:.1f} tok/s"
    print(line, file=sys.stderr)
