"""Micro-benchmarks of every kernel on random numbers, each beside what the machine can do at most.

    python benchmarks/kernel_speeds.py [--only linear layer head sampler] [--kinds bfloat16 int8] [--threads N]
                                       [--repeats 15] [--seed 0] [--json]

Shapes are those of SmolLM2-135M and of a 0.5 B model of Qwen2's shape. Linears are taken in turns from more copies
than the caches hold, so their weights come from memory as in a model. A layer's operators are timed by the decoder
itself, on synthetic layers; a norm there includes the rounding or quantization behind it. Caches are emptied before
each step and each run of the lm_head.

Every figure is the median over the repeats after a warm-up, with the interquartile range. "of floor" is the larger of
bytes over measured read bandwidth and operations over the kind's measured peak, divided by the median; operators that
multiply no matrices have none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from nanovllm.kernels import blas, isa
from nanovllm.kernels.ceilings import peak, read_bandwidth
from nanovllm.kernels.decoder import BLOCK_SIZE, Decoder
from nanovllm.kernels.linear import Linear
from nanovllm.kernels.sampler import Sampler
from nanovllm.kernels.sampling_step import ROW_PARAMS_DTYPE, pack_row
from nanovllm.kernels.team import Team
from nanovllm.kernels.timing import linear_seconds
from nanovllm.machine import cpu, usable_cpus
from nanovllm.sampling_params import SamplingParams

KINDS = ("blas", "float32", "bfloat16", "int8")
ITEMSIZE = {"blas": 4, "float32": 4, "bfloat16": 2, "int8": 1}
ROWS = (1, 2, 4, 8, 16, 64, 256, 512)
# Copies of a weight that are taken in turns hold so many bytes together: several times a last-level cache.
ROTATED_BYTES = 256 << 20
BANDWIDTH_BYTES = 256 << 20
EVICTING = np.ones(128 << 20, np.uint8)
NUM_LAYERS = 4


@dataclass(frozen=True)
class Shape:
    """Sizes of a model's layers."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    def linears(self) -> dict[str, tuple[int, int]]:
        """(out_features, in_features) by name; gate_up counts both halves."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "qkv": (q + 2 * kv, self.hidden_size), "o": (self.hidden_size, q),
            "gate_up": (2 * self.intermediate_size, self.hidden_size),
            "down": (self.hidden_size, self.intermediate_size),
        }  # fmt: skip


SHAPES = (Shape("smollm2-135m", 576, 1536, 9, 3, 64, 49152), Shape("0.5b", 896, 4864, 14, 2, 64, 151936))


def machine_facts(team: Team, kinds: tuple[str, ...]) -> dict[str, Any]:
    """What the figures depend on, and the ceilings they are compared with."""
    return {
        "cpu": cpu().model, "kernels": isa.active_level(), "threads": team.num_threads,
        "load_average": os.getloadavg()[0], "read_bandwidth": read_bandwidth(team, BANDWIDTH_BYTES, 1),
        "peak": {kind: peak(team, "float32" if kind == "blas" else kind) for kind in kinds},
    }  # fmt: skip


def row(name: str, times: Any, facts: dict[str, Any], kind: str, read: float = 0, operations: float = 0) -> dict:
    """One line of the table from seconds of several repeats."""
    low, median, high = np.percentile(times, [25, 50, 75])
    floor = max(read / facts["read_bandwidth"], operations / facts["peak"][kind])
    return {
        "kernel": name, "kind": kind, "median_us": median * 1e6, "iqr_us": (high - low) * 1e6,
        "repeats": len(times), "of_floor": floor / median if floor else None,
    }  # fmt: skip


def weights(team: Team, kind: str, shape: tuple[int, int], gated: bool, copies: int, rng: Any) -> list[Linear]:
    """Copies of one random weight, each in memory of its own."""
    source = rng.standard_normal(shape, np.float32) * 0.05
    if kind == "blas":
        return [Linear(source.copy()) for _ in range(copies)]
    return [Linear.pack(team, kind, [source], gated=gated) for _ in range(copies)]


def copies_of(nbytes: int) -> int:
    """How many copies the caches cannot hold."""
    return max(2, -(-ROTATED_BYTES // nbytes))


def linears(team: Team, shape: Shape, kind: str, facts: dict, repeats: int, rng: Any) -> Iterator[dict]:
    """Every Linear of a layer at every row count; one repeat is a pass over a sixteenth of the copies."""
    for name, (n, k) in shape.linears().items():
        nbytes = n * k * ITEMSIZE[kind]
        rotated = weights(team, kind, (n, k), name == "gate_up", copies_of(nbytes), rng)
        for rows in ROWS:
            x = rng.standard_normal((rows, k), np.float32)
            calls = max(2, len(rotated) // 16)
            with blas.single_threaded():
                times = linear_seconds(team, rotated, x, (repeats + 1) * calls)
            times = times.reshape(-1, calls).mean(axis=1)[1:]
            yield row(f"{shape.name} {name} x{rows}", times, facts, kind, nbytes, 2.0 * n * k * rows)


def synthetic_decoder(team: Team, shape: Shape, kind: str, blocks: int, rows: int, rng: Any) -> Decoder:
    """A decoder of a few random layers with a filled KV cache."""
    spec = SimpleNamespace(
        hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size, rms_norm_eps=1e-5,
        num_attention_heads=shape.num_heads, num_key_value_heads=shape.num_kv_heads, head_dim=shape.head_dim,
        sliding_windows=(0,) * NUM_LAYERS,
    )  # fmt: skip
    norm = np.ones(shape.hidden_size, np.float32)
    layers = []
    for _ in range(NUM_LAYERS):
        layer = {"input_norm": norm, "post_norm": norm, "q_norm": None, "k_norm": None}
        for name, size in shape.linears().items():
            layer[name] = weights(team, kind, size, name == "gate_up", 1, rng)[0]
        layers.append(layer)
    (head,) = weights(team, kind, (shape.vocab_size, shape.hidden_size), False, 1, rng)
    embedding = rng.standard_normal((shape.vocab_size, shape.hidden_size), np.float32)
    inv_freq = (10000.0 ** -(np.arange(shape.head_dim // 2) * 2 / shape.head_dim)).astype(np.float32)
    decoder = Decoder(
        team, spec, inv_freq, 1.0, embedding, norm, head, layers, blocks, rows, 64 if kind == "int8" else 1
    )
    for cache in (decoder.k_cache, decoder.v_cache):
        values = rng.standard_normal(cache.shape[1:], np.float32)
        cache[:] = values if cache.dtype == np.float32 else values.view(np.uint32) >> 16
    return decoder


def step_arrays(seqs: int, count: int, context: int, shared: int) -> tuple[np.ndarray, ...]:
    """Arrays of a step: the last `count` positions of each sequence, the first `shared` positions in common."""
    per_seq = -(-context // BLOCK_SIZE)
    tables = np.arange(seqs * per_seq, dtype=np.int32).reshape(seqs, per_seq)
    tables[:, : shared // BLOCK_SIZE] = tables[0, : shared // BLOCK_SIZE]
    positions = np.tile(np.arange(context - count, context, dtype=np.int32), seqs)
    owner = np.repeat(np.arange(seqs), count)
    slots = tables[owner, positions // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + positions % BLOCK_SIZE
    return np.zeros(len(positions), np.int32), positions, slots, np.arange(seqs + 1, dtype=np.int32) * count, tables


# Name, sequences, rows of each, positions of each, positions that all have in common.
STEPS = (
    ("decode 1 at 512", 1, 1, 512, 0), ("decode 1 at 4096", 1, 1, 4096, 0), ("decode 8 at 512", 8, 1, 512, 0),
    ("decode 64 at 512", 64, 1, 512, 0), ("decode 64 at 1056, 1024 shared", 64, 1, 1056, 1024),
    ("prefill 512", 1, 512, 512, 0), ("prefill 512 at 2048", 1, 512, 2048, 0),
)  # fmt: skip


def layer_operators(team: Team, shape: Shape, kind: str, facts: dict, repeats: int, rng: Any) -> Iterator[dict]:
    """Attention and the operators that go by rows, for one layer."""
    most_blocks = max(seqs * -(-context // BLOCK_SIZE) for _, seqs, _, context, _ in STEPS)
    decoder = synthetic_decoder(team, shape, kind, most_blocks, 512, rng)
    itemsize = 2 if kind in ("bfloat16", "int8") else 4
    for name, seqs, count, context, shared in STEPS:
        arrays, booked = step_arrays(seqs, count, context, shared), []
        with blas.single_threaded():
            for _ in range(repeats + 1):
                evict_caches()
                decoder.profile()
                decoder.forward(*arrays)
                booked.append(decoder.profile(False))
        positions = seqs * context - (seqs - 1) * shared
        work = {
            "attention": (
                2.0 * positions * shape.num_kv_heads * shape.head_dim * itemsize,
                4.0 * shape.num_heads * shape.head_dim * seqs * count * (context - (count - 1) / 2),
            )
        }
        for operator in ("attention", "norm", "rope_and_store", "activation"):
            times = [step[operator] / NUM_LAYERS for step in booked[1:]]
            if any(times):
                yield row(f"{shape.name} {operator}, {name}", times, facts, kind, *work.get(operator, (0, 0)))


def evict_caches() -> None:
    """Read so much else that what comes next is read from memory."""
    EVICTING.max()


def seconds_of(call: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls from memory, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        evict_caches()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times[1:]


def heads(team: Team, shape: Shape, kind: str, facts: dict, repeats: int, rng: Any) -> Iterator[dict]:
    """The lm_head, final norm included: best ids alone, and full logits."""
    decoder = synthetic_decoder(team, shape, kind, 64, 64, rng)
    size = shape.vocab_size * shape.hidden_size
    for rows in (1, 8, 64):
        with blas.single_threaded():
            decoder.forward(*step_arrays(1, rows, rows, 0))
            chosen, best = np.arange(rows, dtype=np.int32), np.empty(rows, np.int32)
            logits = np.empty((rows, shape.vocab_size), np.float32)
            jobs = {"logits": lambda chosen=chosen, logits=logits: decoder.logits(chosen, logits)}
            if decoder.can_take_best:
                jobs["best id"] = lambda chosen=chosen, best=best, logits=logits: decoder.head(chosen, best, logits[:0])
            for name, job in jobs.items():
                times = seconds_of(job, repeats)
                name = f"{shape.name} lm_head {name} x{rows}"
                yield row(name, times, facts, kind, size * ITEMSIZE[kind], 2.0 * size * rows)


SAMPLING = {
    "greedy": {"temperature": 0.0}, "temperature": {}, "top_k 50": {"top_k": 50}, "top_p 0.9": {"top_p": 0.9},
    "min_p 0.05": {"min_p": 0.05}, "typical_p 0.9": {"typical_p": 0.9},
}  # fmt: skip


def samplers(team: Team, shape: Shape, facts: dict, repeats: int, rng: Any) -> Iterator[dict]:
    """Drawing from random logits; each call gets a fresh copy, which is not timed."""
    sampler, none = Sampler(team, shape.vocab_size), np.empty(0, np.int32)
    kind = next(iter(facts["peak"]))
    for rows in (1, 64):
        raw = rng.standard_normal((rows, shape.vocab_size), np.float32) * 3
        for name, settings in SAMPLING.items():
            params = np.zeros(rows, ROW_PARAMS_DTYPE)
            for i in range(rows):
                params[i] = pack_row(SamplingParams(**settings), seed=i)
            times, no_ids = [], np.zeros(rows + 1, np.int32)
            for _ in range(repeats + 1):
                logits = raw.copy()
                start = time.perf_counter()
                sampler.sample(logits, params, none, no_ids, no_ids[:-1].copy(), none, no_ids)
                times.append(time.perf_counter() - start)
            yield row(f"{shape.name} sample {name} x{rows}", times[1:], facts, kind) | {"kind": "-"}


def measure(args: argparse.Namespace, facts: dict, team: Team) -> Iterator[dict]:
    """All rows that were asked for."""
    for shape in SHAPES:
        for kind in args.kinds:
            rng = np.random.default_rng(args.seed)
            for name, part in (("linear", linears), ("layer", layer_operators), ("head", heads)):
                if name in args.only:
                    yield from part(team, shape, kind, facts, args.repeats, rng)
        if "sampler" in args.only:
            yield from samplers(team, shape, facts, args.repeats, np.random.default_rng(args.seed))


def print_facts(facts: dict[str, Any]) -> None:
    """What stands above a table."""
    peaks = ", ".join(f"{kind} {value / 1e9:.0f}" for kind, value in facts["peak"].items())
    print(f"{facts['cpu']}, kernels {facts['kernels']}, {facts['threads']} threads, load {facts['load_average']:.2f}")
    print(f"read bandwidth {facts['read_bandwidth'] / 1e9:.1f} GB/s; peak, G operations/s: {peaks}\n")


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("linear", "layer", "head", "sampler")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    team = Team(args.threads)
    facts = machine_facts(team, tuple(args.kinds))
    if args.json:
        print(json.dumps({"machine": facts, "seed": args.seed, "rows": list(measure(args, facts, team))}, indent=1))
        return
    print_facts(facts)
    print(f"{'kernel':60}{'kind':10}{'median us':>12}{'IQR us':>10}{'of floor':>10}")
    shares = []
    for one in measure(args, facts, team):
        share = "" if one["of_floor"] is None else f"{one['of_floor']:.2f}"
        shares += [] if one["of_floor"] is None else [one["of_floor"]]
        print(f"{one['kernel']:60}{one['kind']:10}{one['median_us']:12.1f}{one['iqr_us']:10.1f}{share:>10}", flush=True)
    if shares:
        print(f"\nmedian share of the floor: {statistics.median(shares):.2f}")


if __name__ == "__main__":
    main()
