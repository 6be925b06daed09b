"""Measure what batching is worth: the same prompts one by one and all at once, in one process.

Prints both rates, their ratio and the peak of resident memory; `--json FILE` keeps the raw numbers. Prompts are random
ids of equal length, decoding is greedy past EOS, so both ways do the same work. The two ways take turns, and medians
are compared, because a shared machine's speed drifts.
"""

import argparse
import json
import os
import random
import resource
import statistics
import time
from pathlib import Path

from nanovllm import LLM, SamplingParams


def timed(llm: LLM, groups: list[list[dict]], params: SamplingParams) -> float:
    """Generate group after group; return the seconds."""
    began = time.perf_counter()
    for group in groups:
        llm.generate(group, params, use_tqdm=False)
    return time.perf_counter() - began


def measure(arguments: argparse.Namespace) -> dict:
    """Run both ways in turn and return every number."""
    # Without prefix caching, since the second way would find the first one's prompts computed.
    llm = LLM(arguments.model, max_num_seqs=arguments.prompts, dtype=arguments.dtype, enable_prefix_caching=False)
    drawn = random.Random(1)
    vocab_size = llm.engine.spec.vocab_size
    prompts = [
        {"prompt_token_ids": [drawn.randrange(vocab_size) for _ in range(arguments.prompt_tokens)]}
        for _ in range(arguments.prompts)
    ]
    params = SamplingParams(temperature=0, max_tokens=arguments.new_tokens, ignore_eos=True)
    timed(llm, [prompts], params)  # warm-up: pages, threads, BLAS
    one_by_one, at_once = [], []
    for _ in range(arguments.repeats):
        at_once.append(timed(llm, [prompts], params))
        one_by_one.append(timed(llm, [[prompt] for prompt in prompts], params))
    tokens = arguments.prompts * arguments.new_tokens
    facts = llm.facts()
    return {
        "settings": {key: str(value) for key, value in vars(arguments).items()},
        "seconds_one_by_one": one_by_one,
        "seconds_at_once": at_once,
        "tokens_per_s_one_by_one": tokens / statistics.median(one_by_one),
        "tokens_per_s_at_once": tokens / statistics.median(at_once),
        "ratio": statistics.median(one_by_one) / statistics.median(at_once),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "load_average": os.getloadavg(),
        **{key: facts[key] for key in ("engine", "kernels", "cpu", "versions")},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, help="write the raw numbers here")
    arguments = parser.parse_args()
    found = measure(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    print(f"{arguments.prompts} prompts of {arguments.prompt_tokens} tokens, {arguments.new_tokens} new tokens each")
    for way in ("one_by_one", "at_once"):
        seconds = ", ".join(f"{value:.2f}" for value in found[f"seconds_{way}"])
        print(f"{way.replace('_', ' '):10}  {found[f'tokens_per_s_{way}']:8.1f} tokens/s  ({seconds} s)")
    print(f"ratio       {found['ratio']:8.2f}")
    print(f"peak RSS    {found['peak_rss_bytes'] / 2**20:8.0f} MiB")


if __name__ == "__main__":
    main()
