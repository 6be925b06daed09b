"""Does batching pay? The same 32 prompts one by one and all at once; prints tokens/s and the ratio.

    python benchmarks/batching.py MODEL [--dtype float32] [--prompts 32] [--new-tokens 32] [--repeats 3]

Seeded random prompts, greedy, EOS ignored, prefix caching off. Loading and one warm-up are not timed; the two ways take
turns, and the medians are compared. Also prints the peak memory beside weights + KV cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time

import numpy as np

from nanovllm import LLM, SamplingParams


def run(llm: LLM, prompts: list[list[int]], new_tokens: int, at_once: bool) -> float:
    """Return generated tokens a second."""
    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
    start = time.perf_counter()
    for group in [prompts] if at_once else [[prompt] for prompt in prompts]:
        llm.generate(group, params, use_tqdm=False)
    return len(prompts) * new_tokens / (time.perf_counter() - start)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--gemm", default="native")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    llm = LLM(
        args.model, dtype=args.dtype, gemm=args.gemm, max_model_len=1024, kv_cache_memory="1GiB",
        enable_prefix_caching=False,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    vocab = llm.engine.spec.vocab_size
    prompts = [rng.integers(0, vocab, n).tolist() for n in rng.integers(16, 65, args.prompts)]
    run(llm, prompts[:4], 4, True)
    alone, together = [], []
    for _ in range(args.repeats):
        alone.append(run(llm, prompts, args.new_tokens, False))
        together.append(run(llm, prompts, args.new_tokens, True))
    facts = llm.facts()
    result = {
        "one_by_one_tokens_per_s": [round(x, 1) for x in alone],
        "at_once_tokens_per_s": [round(x, 1) for x in together],
        "ratio_of_medians": round(statistics.median(together) / statistics.median(alone), 2),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "weights_float32_mib": 4 * facts["model"]["parameters"] >> 20,
        "kv_cache_mib": facts["engine"]["kv_cache_bytes"] >> 20,
        "dtype": facts["engine"]["dtype"],
        "gemm": args.gemm,
        "threads": facts["engine"]["threads"],
        "kernels": facts["kernels"],
        "cpu": facts["cpu"]["model"],
        "load_average": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
