"""`nanovllm check`: what a run would do with each row, without generating."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs import exit_codes
from jobs.commands.arguments import count

EXAMPLE = "nanovllm check configs/quickstart.yaml --row 0"

_FLAGS = ("model", "input", "limit")
_BAR_WIDTH = 40
_MAX_TIMED_ROWS = 64
_TIMED_TOKENS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("job", metavar="JOB.yaml", type=Path, help="the job file")
    parser.add_argument("--row", metavar="N", type=_index, help="show the prompt and the ids of row N, from 0")
    parser.add_argument("--time", action="store_true", help="load the model, measure briefly, estimate the run's time")
    parser.add_argument("--model", metavar="D", help="Hugging Face directory or hub id")
    parser.add_argument("--input", metavar="F", action="append", help="file or glob, - is stdin; may be given again")
    parser.add_argument(
        "--set", metavar="a.b=v", action="append", default=[], help="set any key, as in --set sampling.seed=7"
    )
    parser.add_argument("--limit", metavar="N", type=count, help="look at only the first N rows")


def main(arguments: argparse.Namespace) -> int:
    """Check the rows and print what was found."""
    from jobs.inputs import row_source
    from jobs.job_file import Override, load_job, parse_set
    from jobs.preflight import Preflight
    from jobs.rows import row_parser
    from jobs.work import default_sampling, prompt_builder
    from nanovllm import SamplingParams, plan_model, resolve_model

    overrides = [parse_set(text) for text in arguments.set]
    for name in _FLAGS:
        if getattr(arguments, name) is not None:
            overrides.append(Override((name,), getattr(arguments, name), f"--{name}"))
    job = load_job(arguments.job, overrides)
    source = row_source(job)
    source.check()
    prompts = prompt_builder(job)
    model_dir = resolve_model(job.model, relative_to=job.model_folder)
    plan = plan_model(model_dir, **job.engine)
    prompts.use_tokenizer(plan.tokenizer)
    defaults = default_sampling(job, plan.defaults)
    preflight = Preflight(job, plan, SamplingParams.from_dict(job.sampling, base=defaults))
    rows = preflight.rows(source.rows(job.limit), row_parser(job, prompts))
    if arguments.row is not None:
        return _show_row(job, rows, arguments.row, plan)
    timed = _take_timed(rows) if arguments.time else []
    for _ in rows:
        pass
    report = preflight.report
    print("\n".join(_report_lines(job, plan, report)), flush=True)
    if timed:
        print(_time_line(model_dir, job, timed, report))
    is_good = job.limits.allow(report.errors, report.rows)
    return exit_codes.OK if is_good else exit_codes.TOO_MANY_ERRORS


def _index(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise argparse.ArgumentTypeError(f"expected the index of a row, from 0, found {text!r}")
    return int(text)


def _show_row(job: Any, rows: Iterator[Any], index: int, plan: Any) -> int:
    from nanovllm import ConfigError

    checked = next(itertools.islice(rows, index, None), None)
    if checked is None:
        raise ConfigError(f"--row {index}: the input has no such row; the first is 0")
    row = checked.row
    print(f"row:      {row.index} (id {row.id!r}), {row.place}")
    for note in checked.notes:
        print(f"note:     {note}")
    if checked.error is not None:
        print(f"error:    {checked.error.code}: {checked.error.message}")
    if checked.sampling is not None and job.generates:
        changed = checked.sampling.to_dict(only_changed=True)
        print(f"sampling: {', '.join(f'{key} {value!r}' for key, value in changed.items()) or 'defaults'}")
    if checked.ids:
        cut = f" ({row.num_cut_tokens} cut)" if row.num_cut_tokens else ""
        print(f"prompt:   {len(checked.ids)} tokens{cut}, of which the text is")
        print(plan.tokenizer.decode(checked.ids, skip_special_tokens=False))
        print(f"ids:      {checked.ids}")
    return exit_codes.OK if checked.error is None else exit_codes.TOO_MANY_ERRORS


def _report_lines(job: Any, plan: Any, report: Any) -> Iterator[str]:
    limits = plan.limits
    yield f"job:      {job.name} ({job.path})"
    dtypes = f"{plan.dtype}, KV cache {plan.kv_cache_dtype}"
    yield f"model:    {job.model}: {plan.spec.model_type}, {dtypes}, max_model_len {limits.max_model_len}"
    counts = f"{report.ok} ok ({report.cut} cut), {report.errors} errors, {report.skipped} skipped"
    yield f"rows:     {report.rows}: {counts}"
    for code, number in report.errors_by_code.most_common():
        yield f"  {code}: {number}"
        yield from (f"    {text}" for text in report.examples[code])
    for note, number in report.notes.most_common():
        yield f"note:     {note}: {number} rows, the first at {report.examples[note][0]}"
    yield f"prompts:  {report.prompt_tokens} tokens"
    if report.ok:
        yield (
            f"  shortest {min(report.lengths)}, median {report.quantile(0.5)}, 99 % {report.quantile(0.99)}, "
            f"longest {max(report.lengths)}"
        )
    most = max((number for *_, number in report.buckets()), default=1)
    for low, high, number in report.buckets():
        bar = "#" * (-(-number * _BAR_WIDTH // most))
        yield f"  {f'{low}-{high}':>15} {number:>9} {bar}".rstrip()
    yield f"to come:  at most {report.max_completion_tokens} tokens (n times max_tokens, or what the context has left)"
    yield (
        f"memory:   about {_size(plan.weights_bytes)} weights, {_size(limits.kv_cache_bytes)} KV cache for "
        f"{limits.max_num_seqs} sequences, at most {_size(plan.scratch_bytes)} scratch; "
        f"{_size(plan.free_bytes)} is free"
    )


def _size(num_bytes: int) -> str:
    for unit, divisor in (("GB", 10**9), ("MB", 10**6)):
        if num_bytes >= divisor:
            return f"{num_bytes / divisor:.1f} {unit}"
    return f"{num_bytes / 1000:.0f} kB"


def _take_timed(rows: Iterator[Any]) -> list[Any]:
    timed = []
    for checked in rows:
        if checked.error is None:
            timed.append(checked)
        if len(timed) == _MAX_TIMED_ROWS:
            break
    return timed


def _time_line(model_dir: Path, job: Any, timed: list[Any], report: Any) -> str:
    """Time the first rows twice, with one token each and with some; the difference is the price of a token."""
    from nanovllm import LLM, Request, SamplingParams

    llm = LLM(model_dir, **{**job.engine, "enable_prefix_caching": False})

    def seconds(num_tokens: int) -> float:
        params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
        began = time.monotonic()
        for _ in llm.generate_iter(
            Request({"prompt_token_ids": checked.ids}, params, str(i)) for i, checked in enumerate(timed)
        ):
            pass
        return time.monotonic() - began

    prefill = seconds(1)
    decode = max(seconds(1 + _TIMED_TOKENS) - prefill, 0.0)
    num_prompt = sum(len(checked.ids) for checked in timed)
    eta = prefill / num_prompt * report.prompt_tokens
    eta += decode / (_TIMED_TOKENS * len(timed)) * report.max_completion_tokens
    return (
        f"time:     at most about {eta:.0f} s, if every completion is as long as it may be (measured on the first "
        f"{len(timed)} rows: {num_prompt / max(prefill, 1e-9):.0f} prompt tokens/s, "
        f"{_TIMED_TOKENS * len(timed) / max(decode, 1e-9):.0f} completion tokens/s)"
    )
