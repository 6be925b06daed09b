"""Where a decode step's time goes: by operator, with bytes, operations and the share of the floor.

    python benchmarks/step_profile.py MODEL [--dtype bfloat16] [--seqs 64] [--context 128] [--steps 40]

The floor of an operator is the larger of its bytes over the measured read bandwidth and its operations over the
measured peak of the matrix kernels. Operators without matrix products have no floor of their own. "outside" is Python:
scheduler, batch arrays, appending tokens. Seeded random prompts; greedy.
"""

from __future__ import annotations

import argparse
import json
import os
import time

from nanovllm import LLM
from nanovllm.bench import _add, ceilings
from nanovllm.engine.limits import block_bytes
from nanovllm.kernels import isa
from nanovllm.kernels.decoder import BLOCK_SIZE

ITEMSIZE = {"float32": 4, "bfloat16": 2, "int8": 1}


def work(llm: LLM, seqs: int, context: float) -> dict[str, tuple[float, float]]:
    """Return (bytes, operations) of each operator of one step."""
    spec, size = llm.engine.spec, ITEMSIZE[llm.engine.dtype]
    hidden, inter, layers = spec.hidden_size, spec.intermediate_size, spec.num_hidden_layers
    q, kv = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
    weights = {
        "qkv": layers * hidden * (q + 2 * kv), "o": layers * hidden * q, "gate_up": 2 * layers * hidden * inter,
        "down": layers * hidden * inter, "lm_head": spec.vocab_size * hidden,
    }  # fmt: skip
    result = {name: (size * n, 2.0 * n * seqs) for name, n in weights.items()}
    cache = block_bytes(spec, llm.engine.kv_cache_dtype) / BLOCK_SIZE * context * seqs
    result["attention"] = (cache, 4.0 * layers * q * context * seqs)
    return result


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--seqs", type=int, default=64)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    threads = {} if args.threads is None else {"threads": args.threads}
    llm = LLM(
        args.model, dtype=args.dtype, kv_cache_dtype=args.kv_cache_dtype, max_num_seqs=args.seqs,
        max_model_len=args.context + args.steps + 8, enable_prefix_caching=False, **threads,
    )  # fmt: skip
    engine, limits = llm.engine, ceilings(llm.engine)
    _add(engine, args.seqs, args.context, args.steps + 4, 0)
    while engine.scheduler.waiting or any(seq.num_completion == 0 for seq in engine.scheduler.running):
        engine.step()
    engine.runner.decoder.profile()
    start, steps = time.perf_counter(), 0
    while len(engine.scheduler.running) == args.seqs and steps < args.steps:
        engine.step()
        steps += 1
    total = (time.perf_counter() - start) / steps
    booked = {name: taken / steps for name, taken in engine.runner.decoder.profile(False).items()}
    booked["outside"] = total - sum(booked.values())
    jobs = work(llm, args.seqs, args.context + steps / 2)
    rows = []
    for name, taken in booked.items():
        row = {"operator": name, "ms": round(taken * 1e3, 3), "share": round(taken / total, 3)}
        if name in jobs:
            read, operations = jobs[name]
            floor = max(read / limits["read_bandwidth"], operations / limits["peak"])
            row |= {
                "mbytes": round(read / 1e6, 1),
                "gflop": round(operations / 1e9, 2),
                "of_floor": round(floor / taken, 2),
            }
        rows.append(row)
    facts = {
        "dtype": engine.dtype, "kv_cache_dtype": engine.kv_cache_dtype, "seqs": args.seqs,
        "step_ms": round(total * 1e3, 2), "kernels": isa.active_level(),
        "threads": engine.runner.team.num_threads, "read_gb_s": round(limits["read_bandwidth"] / 1e9, 1),
        "peak_gflop_s": round(limits["peak"] / 1e9), "load_average": round(os.getloadavg()[0], 2),
    }  # fmt: skip
    print(json.dumps(facts))
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
