"""How the batch size, the token budget and the order of admission change the speed of a job: a sweep.

    python benchmarks/settings_sweep.py MODEL [--dtype bfloat16] [--repeats 3] [--prompts 192] [--out FILE.json]

A job of prompts of 32 to 256 tokens, 64 new tokens each, under every `max_num_seqs`, then under every
`max_num_batched_tokens`; one LLM a setting, settings interleaved, medians, and the ratio to what `auto` chooses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import workloads

from nanovllm import LLM, SamplingParams, machine_info

SWEEPS = {
    "max_num_seqs": ("auto", 8, 16, 32, 64, 128, 256),
    "max_num_batched_tokens": ("auto", 64, 128, 256, 512, 1024, 2048),
}


def prompts_of(vocab: int, count: int, seed: int) -> list[list[int]]:
    """Return a job's prompts as token ids."""
    rng = np.random.default_rng([seed, 77])
    return [rng.integers(workloads.FIRST_ID, vocab, n).tolist() for n in rng.integers(32, 257, count)]


def run_once(model: str, dtype: str, setting: dict, prompts: list[list[int]]) -> float:
    """Return tokens/s, prompt and completion together, without loading."""
    llm = LLM(model, dtype=dtype, max_model_len=1024, enable_prefix_caching=False, **setting)
    llm.generate(prompts[:4], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True), use_tqdm=False)
    start = time.perf_counter()
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=64, ignore_eos=True), use_tqdm=False)
    wall = time.perf_counter() - start
    return sum(len(o.prompt_token_ids) + len(o.outputs[0].token_ids) for o in outputs) / wall


def main() -> None:
    """Measure and print Markdown; --out keeps every measurement with the machine's facts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--only", choices=list(SWEEPS), help="sweep this setting alone")
    parser.add_argument("--out")
    args = parser.parse_args()
    vocab, rows = workloads.vocabulary(args.model), []
    for name, values in SWEEPS.items():
        if args.only not in (None, name):
            continue
        for repeat in range(args.repeats):
            prompts = prompts_of(vocab, args.prompts, repeat)
            for value in values:
                speed = run_once(args.model, args.dtype, {} if value == "auto" else {name: value}, prompts)
                rows.append({"setting": name, "value": value, "repeat": repeat, "tokens_per_s": round(speed, 1)})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        median = {v: statistics.median(r["tokens_per_s"] for r in rows if (r["setting"], r["value"]) == (name, v))
                  for v in values}  # fmt: skip
        print(f"\n| {name} | tokens/s | of auto |\n|---|---|---|")
        for value in values:
            print(f"| {value} | {median[value]:.0f} | {median[value] / median['auto']:.2f} |")
    if args.out:
        facts = machine_info() | {"load_average": os.getloadavg()[0]}
        result = {"model": Path(args.model).name, "dtype": args.dtype, "machine": facts, "measurements": rows}
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
