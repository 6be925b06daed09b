"""What does the runner cost beside the engine?

    python benchmarks/runner_overhead.py rows [MODEL] [--rows 20000]
    python benchmarks/runner_overhead.py wall MODEL [--rows 500] [--new-tokens 64] [--repeats 5]

`rows`: rows/s of a whole `nanovllm run` of 1-token generations on a tiny checkpoint, beside what the engine alone does
with the same prompts, so that it is seen which of the two bounds it. `wall`: seconds of `run` against those of
`LLM.generate` for the same rows on a real model, both without loading, in turns; medians, and the runner's share. Where
that share is smaller than the noise of the engine, the seconds outside the engine's steps tell: the steps of both are
the same.
Prints JSON. Measure on a machine that has nothing else to do; the load average is printed with the numbers.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from jobs.job_file import load_job
from jobs.run import run_job
from nanovllm import LLM, SamplingParams

ROOT = Path(__file__).parents[1]
TINY_MODEL = ROOT / "tests" / "golden" / "models" / "llama-f32"
WORDS = ("the", "rain", "of", "last", "night", "fell", "on", "every", "roof", "in", "town", "and", "nobody", "heard")


def make_prompts(num_rows: int, num_words: int) -> list[str]:
    """Make prompts of which no two are equal, since equal ones would be computed once."""
    return [
        f"{number}: " + " ".join(WORDS[(number + place) % len(WORDS)] for place in range(num_words))
        for number in range(num_rows)
    ]


class StepClock:
    """Adds up the seconds of an engine's steps."""

    def __init__(self, llm: LLM):
        self.seconds = 0.0
        self.count = 0
        self._step = llm.engine.step
        llm.engine.step = self._timed

    def _timed(self) -> Any:
        began = time.perf_counter()
        try:
            return self._step()
        finally:
            self.seconds += time.perf_counter() - began
            self.count += 1

    def take(self) -> tuple[float, int]:
        """Give seconds and number of the steps since the last call."""
        taken = self.seconds, self.count
        self.seconds, self.count = 0.0, 0
        return taken


def time_run(llm: LLM, folder: Path, prompts: list[str], max_tokens: int) -> float:
    """Give the seconds of a run with a loaded model, from the job file to the manifest."""
    (folder / "in.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), "utf-8")
    (folder / "job.yaml").write_text(
        f"model: {llm.model_dir}\ninput: in.jsonl\noutput: out\nprogress: none\nrestart: true\n"
        f"sampling: {{max_tokens: {max_tokens}, temperature: 0, ignore_eos: true}}\n",
        "utf-8",
    )
    began = time.perf_counter()
    code = run_job(load_job(folder / "job.yaml"), lambda job: llm, io.StringIO())
    seconds = time.perf_counter() - began
    if code != 0:
        raise SystemExit(f"the run ended with {code}")
    return seconds


def time_generate(llm: LLM, prompts: list[str], max_tokens: int) -> float:
    """Give the seconds of `LLM.generate`."""
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    began = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - began


def compare(args: argparse.Namespace, num_words: int) -> dict[str, Any]:
    """Time both in turns, each beginning every other turn."""
    llm = LLM(args.model, dtype=args.dtype, enable_prefix_caching=False)
    prompts = make_prompts(args.rows, num_words)
    time_generate(llm, prompts[:64], args.new_tokens)
    clock = StepClock(llm)
    runs, generations, outside, steps = [], [], {True: [], False: []}, {True: set(), False: set()}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        for turn in range(args.repeats):
            for is_run in (turn % 2 == 0, turn % 2 == 1):
                if is_run:
                    runs.append(time_run(llm, Path(name), prompts, args.new_tokens))
                else:
                    generations.append(time_generate(llm, prompts, args.new_tokens))
                seconds, count = clock.take()
                outside[is_run].append((runs if is_run else generations)[-1] - seconds)
                steps[is_run].add(count)
    run, generate = statistics.median(runs), statistics.median(generations)
    more = statistics.median(outside[True]) - statistics.median(outside[False])
    facts = llm.facts()
    return {
        "rows": args.rows,
        "new_tokens": args.new_tokens,
        "run_s": [round(seconds, 3) for seconds in runs],
        "generate_s": [round(seconds, 3) for seconds in generations],
        "run_rows_per_s": round(args.rows / run, 1),
        "generate_rows_per_s": round(args.rows / generate, 1),
        "overhead_of_medians": f"{run / generate - 1:+.1%}",
        "run_outside_steps_s": [round(seconds, 3) for seconds in outside[True]],
        "generate_outside_steps_s": [round(seconds, 3) for seconds in outside[False]],
        "steps": {"run": sorted(steps[True]), "generate": sorted(steps[False])},
        "overhead_outside_steps": f"{more / generate:+.1%}",
        "model": str(args.model),
        "dtype": facts["engine"]["dtype"],
        "threads": facts["engine"]["threads"],
        "kernels": facts["kernels"],
        "cpu": facts["cpu"]["model"],
        "load_average": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["rows", "wall"])
    parser.add_argument("model", nargs="?", type=Path, default=TINY_MODEL)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--new-tokens", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--folder", type=Path, help="where the runs are written; default: the system's folder for it")
    args = parser.parse_args()
    is_rows = args.what == "rows"
    args.rows = args.rows or (20_000 if is_rows else 500)
    args.new_tokens = args.new_tokens or (1 if is_rows else 64)
    print(json.dumps(compare(args, num_words=4 if is_rows else 24), indent=1))


if __name__ == "__main__":
    main()
