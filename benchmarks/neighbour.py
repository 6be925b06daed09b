"""How a run shares the machine: beside one busy process, and on one thread against two.

    python benchmarks/neighbour.py MODEL [--dtype bfloat16] [--repeats 3]

Runs workload W1 quietly and beside a process that keeps one core busy, taking turns; then prefill and decode on one and
on all threads. Prints medians and ratios as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import workloads

from nanovllm import LLM, SamplingParams
from nanovllm.bench import _decode, _prefill


def run(llm: LLM, prompts: list[list[int]], new: int) -> float:
    """Return the seconds of one workload."""
    params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
    start = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - start


def contention(llm: LLM, repeats: int) -> dict:
    """Return W1's seconds quiet and beside a busy process."""
    vocab, quiet, busy = workloads.vocabulary(str(llm.model_dir)), [], []
    run(llm, *workloads.warm_up(vocab))
    for repeat in range(repeats):
        quiet.append(run(llm, *workloads.make("W1", vocab, repeat)))
        neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            busy.append(run(llm, *workloads.make("W1", vocab, repeat)))
        finally:
            neighbour.kill()
            neighbour.wait()
    ratio = statistics.median(busy) / statistics.median(quiet)
    return {"w1_quiet_s": quiet, "w1_beside_a_busy_process_s": busy, "ratio": round(ratio, 2)}


def speeds(model: str, dtype: str, threads: int | str) -> tuple[float, float, int]:
    """Return (prefill tokens/s, decode tokens/s at 64 sequences, threads)."""
    llm = LLM(model, dtype=dtype, threads=threads, max_num_seqs=64, max_model_len=1024, enable_prefix_caching=False)
    _prefill(llm.engine, -1)
    prefill = statistics.median(_prefill(llm.engine, i) for i in range(3))
    return prefill, 64 / _decode(llm.engine, 64, 0)[0], llm.engine.runner.team.num_threads


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    llm = LLM(args.model, dtype=args.dtype, max_model_len=1024, enable_prefix_caching=False)
    result = contention(llm, args.repeats)
    del llm
    one, many = speeds(args.model, args.dtype, 1), speeds(args.model, args.dtype, "auto")
    result["threads"] = many[2]
    result["prefill_scaling"] = round(many[0] / one[0], 2)
    result["decode_64_scaling"] = round(many[1] / one[1], 2)
    result["load_average"] = round(os.getloadavg()[0], 2)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
