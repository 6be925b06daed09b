r"""nanovllm against other engines: the same prompts, interleaved in one run, medians and ratios.

    python benchmarks/peers.py --model DIR --engines nanovllm:bfloat16,vllm:bf16 \\
        --python vllm=/path/to/its/python [--workloads W1,W2,W3,W4] [--repeats 3] [--threads 2] [--out FILE.json]

Each engine is a process of its own, loaded once; while one works the others are stopped by SIGSTOP, so that nobody's
spinning threads disturb the measurement. An engine that cannot be loaded is left out, and said to be.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from pathlib import Path

from nanovllm import machine_info

HERE = Path(__file__).resolve().parent


class Engine:
    """A process that runs workloads on demand."""

    def __init__(self, name: str, python: str, model: str, threads: int):
        self.name = name
        engine, dtype = name.split(":")
        command = [python, str(HERE / "engines.py"), engine, dtype, model, str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        if engine == "nanovllm":
            environment["PYTHONPATH"] = str(HERE.parent)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment, start_new_session=True,
        )  # fmt: skip
        self.facts = self._answer()
        self._signal(signal.SIGSTOP)

    def _answer(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended with code {self.process.wait()}")

    def _signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def run(self, workload: str, seed: int) -> dict:
        """Run one workload and return its measurement."""
        self._signal(signal.SIGCONT)
        try:
            self.process.stdin.write(f"{workload} {seed}\n")
            self.process.stdin.flush()
            return self._answer()
        finally:
            if self.process.poll() is None:
                self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End the process and what it started."""
        if self.process.poll() is None:
            self._signal(signal.SIGKILL)
        self.process.wait()


def load(names: list[str], pythons: dict[str, str], model: str, threads: int) -> list[Engine]:
    """Start every engine that can be loaded, one after another."""
    engines = []
    for name in names:
        try:
            engines.append(Engine(name, pythons.get(name.split(":")[0], sys.executable), model, threads))
            print(f"{name}: {engines[-1].facts}", file=sys.stderr, flush=True)
        except (RuntimeError, OSError) as error:
            print(f"{name}: left out, {error}", file=sys.stderr, flush=True)
    return engines


def measure(engines: list[Engine], workloads: list[str], repeats: int) -> list[dict]:
    """Run every workload on every engine in turn, `repeats` times."""
    rows = []
    for workload in workloads:
        for repeat in range(repeats):
            for engine in engines:
                answer = engine.run(workload, repeat)
                rows.append({"engine": engine.name, "workload": workload, "repeat": repeat, **answer})
                rows[-1]["load_average"] = round(os.getloadavg()[0], 2)
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict], names: list[str], workloads: list[str]) -> list[str]:
    """Markdown: medians in seconds, and each peer's time over ours."""
    lines = ["| | " + " | ".join(workloads) + " |", "|---" * (len(workloads) + 1) + "|"]
    median = {
        (name, w): statistics.median(r["wall_s"] for r in rows if r["engine"] == name and r["workload"] == w)
        for name in names
        for w in workloads
    }
    for name in names:
        lines.append(f"| {name} | " + " | ".join(f"{median[name, w]:.2f}" for w in workloads) + " |")
    for ours in (n for n in names if n.startswith("nanovllm")):
        for peer in (n for n in names if not n.startswith("nanovllm")):
            ratios = " | ".join(f"{median[peer, w] / median[ours, w]:.2f}x" for w in workloads)
            lines.append(f"| {peer} / {ours} | {ratios} |")
    return lines


def main() -> None:
    """Measure and print the table; --out keeps every measurement with the machine's facts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--engines", required=True, help="ENGINE:DTYPE, with commas")
    parser.add_argument("--python", action="append", default=[], help="ENGINE=PYTHON of its environment")
    parser.add_argument("--workloads", default="W1,W2,W3,W4")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out")
    args = parser.parse_args()
    pythons = dict(pair.split("=", 1) for pair in args.python)
    workloads = args.workloads.split(",")
    engines = load(args.engines.split(","), pythons, args.model, args.threads)
    try:
        rows = measure(engines, workloads, args.repeats)
    finally:
        for engine in engines:
            engine.close()
    names = [engine.name for engine in engines]
    print("\n".join(table(rows, names, workloads)))
    if args.out:
        facts = machine_info() | {"system": platform.system(), "threads": args.threads}
        loaded = {engine.name: engine.facts for engine in engines}
        result = {"model": Path(args.model).name, "machine": facts, "engines": loaded, "measurements": rows}
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
