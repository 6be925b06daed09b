"""From the start of a process to the first token, with the checkpoint in the page cache.

    python benchmarks/start_up.py MODEL [--dtype bfloat16] [--repeats 5]

Prints medians and ranges in seconds as JSON: of `import nanovllm`, of making the LLM, of the first token after it, and
of the whole process from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

CHILD = """
import json, sys, time
start = time.perf_counter()
import nanovllm
imported = time.perf_counter()
from nanovllm import LLM, SamplingParams
llm = LLM(sys.argv[1], dtype=sys.argv[2])
loaded = time.perf_counter()
llm.generate([[1, 2, 3, 4]], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True), use_tqdm=False)
print(json.dumps({"import_s": imported - start, "load_s": loaded - imported, "token_s": time.perf_counter() - loaded}))
"""


def start(model: str, dtype: str) -> dict[str, float]:
    """Start one process and return its parts in seconds."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    began = time.perf_counter()
    child = subprocess.run(
        [sys.executable, "-c", CHILD, model, dtype], capture_output=True, check=True, env=environment
    )
    parts = json.loads(child.stdout)
    parts["process_s"] = time.perf_counter() - began
    return parts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    start(args.model, args.dtype)  # fills the page cache
    runs = [start(args.model, args.dtype) for _ in range(args.repeats)]
    result = {"model": Path(args.model).name, "dtype": args.dtype, "load_average": round(os.getloadavg()[0], 2)}
    for name in runs[0]:
        values = sorted(run[name] for run in runs)
        result[name] = {
            "median": round(statistics.median(values), 3),
            "range": [round(v, 3) for v in values[:: len(values) - 1]],
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
