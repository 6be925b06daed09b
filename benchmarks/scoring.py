"""Multiple-choice items scored together and each pair by itself: equal sums, and how much faster.

    python benchmarks/scoring.py MODEL ITEMS.jsonl [--items 500] [--repeats 3] [--shots 0] [--dtype float32]

ITEMS has rows with `query` and `choices`. "Together" is one call of `LLM.score`; "by itself" is a call for each pair
without prefix caching. Then every pair is computed a third way, as `prompt_logprobs` of prompt and choice joined.
Prints JSON: medians in seconds, their ratio, and the largest difference of any sum.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

from nanovllm import LLM, SamplingParams


def read_items(path: str, count: int, shots: int) -> tuple[list[str], list[list[str]]]:
    """Return prompts and the choices of each; the first `shots` rows stand before every prompt as answered examples."""
    rows = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()[: shots + count]]
    before = "".join(f"{row['query']} {row['choices'][row['gold']]}\n\n" for row in rows[:shots])
    rows = rows[shots:]
    return [before + row["query"] for row in rows], [[f" {choice}" for choice in row["choices"]] for row in rows]


def joined_sums(llm: LLM, pairs: list[list]) -> list[float]:
    """Return each pair's sum from the log probabilities of the joined prompt's tokens."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    prompts = [pair.prompt_token_ids + pair.token_ids for pair in pairs]
    sums = []
    for pair, output in zip(pairs, llm.generate(prompts, params, use_tqdm=False), strict=True):
        steps = output.prompt_logprobs[len(pair.prompt_token_ids) :]
        sums.append(sum(step[i].logprob for step, i in zip(steps, pair.token_ids, strict=True)))
    return sums


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("items")
    parser.add_argument("--items", dest="count", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    prompts, choices = read_items(args.items, args.count, args.shots)
    shared = LLM(args.model, dtype=args.dtype, max_model_len=2048)
    alone = LLM(args.model, dtype=args.dtype, max_model_len=2048, enable_prefix_caching=False)
    together_s, alone_s = [], []
    for _ in range(args.repeats):
        start = time.perf_counter()
        together = [pair for group in shared.score(prompts, choices, use_tqdm=False) for pair in group]
        together_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        singly = [
            alone.score(prompt, [choice], use_tqdm=False)[0][0]
            for prompt, group in zip(prompts, choices, strict=True)
            for choice in group
        ]
        alone_s.append(time.perf_counter() - start)
    sums = joined_sums(alone, together)
    result = {
        "model": Path(args.model).name,
        "dtype": args.dtype,
        "items": len(prompts),
        "pairs": len(together),
        "shots": args.shots,
        "together_s": [round(s, 2) for s in together_s],
        "by_itself_s": [round(s, 2) for s in alone_s],
        "ratio": round(statistics.median(alone_s) / statistics.median(together_s), 2),
        "from_by_itself": max(abs(a.logprob - b.logprob) for a, b in zip(together, singly, strict=True)),
        "from_joined": max(abs(a.logprob - b) for a, b in zip(together, sums, strict=True)),
        "load_average": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
