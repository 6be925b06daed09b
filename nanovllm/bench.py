"""`nanovllm bench`: prefill and decode speed of a model on this machine, beside what the machine can do at most.

A floor is the time below which no engine can go: the larger of the bytes that a step must read over the measured read
bandwidth, and its operations over the measured peak of the matrix kernels. Speeds are given as a share of it.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nanovllm.engine.limits import block_bytes
from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.engine.sequence import Sequence
from nanovllm.kernels import isa
from nanovllm.kernels.ceilings import peak, read_bandwidth
from nanovllm.kernels.decoder import BLOCK_SIZE
from nanovllm.llm import LLM
from nanovllm.sampling_params import SamplingParams

DECODE_SEQS = (1, 8, 64, 256)
PROMPT_TOKENS = 128
PREFILL_TOKENS = 2048
DECODE_STEPS = 24
KINDS = ("float32", "bfloat16", "int8")
# Far beyond the last cache of one thread, so that memory is measured and not a cache.
BANDWIDTH_BYTES = 512 << 20


def ceilings(engine: LLMEngine) -> dict[str, float]:
    """Read bandwidth in bytes/s, and the peak of the engine's matrix kernel in operations/s."""
    team = engine.runner.team
    kind = "float32" if engine.dtype == "float32" else engine.dtype
    return {"read_bandwidth": read_bandwidth(team, BANDWIDTH_BYTES, 1), "peak": peak(team, kind)}


def _body_parameters(engine: LLMEngine) -> int:
    spec = engine.spec
    embeddings = spec.vocab_size * spec.hidden_size * (1 if spec.tie_word_embeddings else 2)
    return spec.num_parameters - embeddings


def _floor_s(engine: LLMEngine, limits: dict[str, float], rows: int, logit_rows: int, context: int, seqs: int) -> float:
    """Floor of one step, in seconds: `rows` token rows, `seqs` sequences of `context` tokens in the cache."""
    spec = engine.spec
    itemsize = {"float32": 4, "bfloat16": 2, "int8": 1}[engine.dtype]
    body, head = _body_parameters(engine), spec.vocab_size * spec.hidden_size
    kv = block_bytes(spec, engine.kv_cache_dtype) / BLOCK_SIZE * context * seqs
    read = ((body + head) * itemsize + kv) / limits["read_bandwidth"]
    attention = 4 * spec.num_hidden_layers * spec.num_attention_heads * spec.head_dim * rows * context
    compute = (2 * body * rows + 2 * head * logit_rows + attention) / limits["peak"]
    return max(read, compute)


def _add(engine: LLMEngine, count: int, length: int, new_tokens: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
    for i in range(count):
        ids = rng.integers(0, engine.spec.vocab_size, length).tolist()
        engine.add(Sequence(str(i), ids, params))


def _drain(engine: LLMEngine) -> float:
    start = time.perf_counter()
    while engine.has_unfinished:
        engine.step()
    return time.perf_counter() - start


def _prefill(engine: LLMEngine, repeat: int) -> float:
    """Tokens a second of prompts computed."""
    length = min(512, engine.limits.max_model_len - 1)
    count = max(1, PREFILL_TOKENS // length)
    _add(engine, count, length, 1, 1000 + repeat)
    return count * length / _drain(engine)


def _decode(engine: LLMEngine, seqs: int, repeat: int) -> tuple[float, float]:
    """(seconds of a step in which `seqs` sequences get one token each, their mean context in tokens)."""
    length = min(PROMPT_TOKENS, engine.limits.max_model_len // 2)
    _add(engine, seqs, length, engine.limits.max_model_len - length, repeat)
    scheduler = engine.scheduler
    while scheduler.waiting or any(seq.num_completion == 0 for seq in scheduler.running):
        engine.step()
    times = []
    for _ in range(DECODE_STEPS):
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    context = statistics.mean(seq.num_tokens for seq in scheduler.running)
    for seq in list(scheduler.running):
        engine.abort(seq)
    return statistics.median(times), context


def bench_model(
    model: Any, *, repeats: int = 3, progress: Callable[[str], None] | None = None, **settings: Any
) -> dict[str, Any]:
    """Measure a model.

    Args:
        model: a Hugging Face directory or hub id.
        repeats: measurements of each kind; the median is given.
        progress: called with a few words before each part.
        settings: keyword arguments of `LLM`; max_num_seqs is raised to the largest batch measured.

    Returns:
        Facts of the machine, ceilings (peaks of every number format), and for each measurement tokens/s (median,
        lowest, highest) and the share of the floor (1.0: as fast as the machine can be).
    """
    say = progress or (lambda text: None)
    say("loading the model")
    start = time.perf_counter()
    settings = {"max_num_seqs": max(DECODE_SEQS), "max_model_len": 1024, "enable_prefix_caching": False, **settings}
    llm = LLM(model, **settings)
    load_s = time.perf_counter() - start
    say("measuring the machine")
    limits = ceilings(llm.engine)
    peaks = {kind: round(peak(llm.engine.runner.team, kind) / 1e9, 1) for kind in KINDS}
    rows = list(_measure(llm.engine, limits, repeats, say))
    return {
        "model": str(llm.model_dir), "dtype": llm.engine.dtype, "kv_cache_dtype": llm.engine.kv_cache_dtype,
        "kernels": isa.active_level(),
        "threads": llm.engine.runner.team.num_threads, "load_s": round(load_s, 3),
        "read_bandwidth_gb_s": round(limits["read_bandwidth"] / 1e9, 1), "peak_gflop_s": round(limits["peak"] / 1e9, 1),
        "peaks_gflop_s": peaks, "load_average": round(os.getloadavg()[0], 2), "measurements": rows,
    }  # fmt: skip


def _measure(
    engine: LLMEngine, limits: dict[str, float], repeats: int, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    say("prefill")
    _prefill(engine, -1)
    speeds = [_prefill(engine, i) for i in range(repeats)]
    rows = engine.limits.max_num_batched_tokens
    floor = _floor_s(engine, limits, rows, 1, 256, 0)
    yield _row("prefill", speeds, rows / floor)
    capacity = engine.limits.num_blocks * BLOCK_SIZE
    for seqs in DECODE_SEQS:
        if seqs > engine.limits.max_num_seqs or seqs * engine.limits.max_model_len > capacity:
            say(f"decode, {seqs} sequences: left out, the KV cache is too small")
            continue
        say(f"decode, {seqs} sequences")
        measured = [_decode(engine, seqs, i) for i in range(repeats)]
        context = statistics.mean(context for _, context in measured)
        floor = _floor_s(engine, limits, seqs, seqs, int(context), seqs)
        yield _row(f"decode x{seqs}", [seqs / taken for taken, _ in measured], seqs / floor)


def _row(name: str, speeds: list[float], at_floor: float) -> dict[str, Any]:
    median = statistics.median(speeds)
    return {
        "what": name, "tokens_per_s": round(median, 1), "lowest": round(min(speeds), 1),
        "highest": round(max(speeds), 1), "share_of_floor": round(median / at_floor, 3),
    }  # fmt: skip
