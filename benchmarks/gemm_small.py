"""Few rows against a float32 weight: our own kernel, SciPy's BLAS under our threads, and NumPy.

    python benchmarks/gemm_small.py [--repeats 15] [--threads 1 2] [--seed 0] [--json]

`native` is the packed float32 kernel; `blas` is `scipy.linalg.cython_blas.sgemm` on each thread's share of the columns,
as the setting `gemm: blas` runs it; `numpy` is `x @ weight.T` with threads of NumPy's own. Weights are taken in turns
from more copies than the caches hold. Medians with the interquartile range; ratios are time over native's: above 1 our
kernel is faster. NumPy's call goes through Python, a microsecond or two.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from kernel_speeds import SHAPES, copies_of, machine_facts, print_facts, row, weights

from nanovllm.kernels import blas
from nanovllm.kernels.team import Team
from nanovllm.kernels.timing import linear_seconds

ROWS = (1, 2, 4, 8, 16)
PAUSE_S = 0.5  # NumPy's own threads spin on for a while when their work is done, on the cores of who comes next


def numpy_seconds(copies: list[np.ndarray], x: np.ndarray, calls: int) -> np.ndarray:
    """Seconds of each product, weights in turns."""
    out, times = np.empty((len(x), len(copies[0])), np.float32), np.empty(calls)
    for i in range(calls):
        weight = copies[i % len(copies)]
        start = time.perf_counter()
        np.matmul(x, weight.T, out=out)
        times[i] = time.perf_counter() - start
    return times


def compare(teams: list[Team], size: tuple[int, int], repeats: int, rng: Any) -> Iterator[tuple[int, str, np.ndarray]]:
    """(rows, name, seconds of each repeat) of one weight; the engines take turns within a row count."""
    count = copies_of(4 * size[0] * size[1])
    native = weights(teams[0], "float32", size, False, count, rng)
    plain = [rng.standard_normal(size, np.float32) for _ in range(count)]
    through_blas = [type(native[0])(weight) for weight in plain]
    calls = max(2, count // 16)
    for rows in ROWS:
        x = rng.standard_normal((rows, size[1]), np.float32)
        for team in teams:
            yield rows, f"native {team.num_threads}", linear_seconds(team, native, x, (repeats + 1) * calls)
            with blas.single_threaded():
                yield rows, f"blas {team.num_threads}", linear_seconds(team, through_blas, x, (repeats + 1) * calls)
        yield rows, "numpy", numpy_seconds(plain, x, (repeats + 1) * calls)
        time.sleep(PAUSE_S)


def main() -> None:
    """Measure and print a table of ratios, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    teams, rng = [Team(threads) for threads in args.threads], np.random.default_rng(args.seed)
    facts, found = machine_facts(teams[-1], ("float32",)), []
    for shape in SHAPES:
        for name, size in shape.linears().items():
            calls = max(2, copies_of(4 * size[0] * size[1]) // 16)
            for rows, engine, times in compare(teams, size, args.repeats, rng):
                times = times.reshape(-1, calls).mean(axis=1)[1:]
                found.append(
                    row(name, times, facts, "float32", 4.0 * size[0] * size[1], 2.0 * size[0] * size[1] * rows)
                    | {"kernel": f"{shape.name} {name}", "rows": rows, "engine": engine}
                )
    if args.json:
        print(json.dumps({"machine": facts, "seed": args.seed, "rows": found}, indent=1))
        return
    print_facts(facts)
    print_ratios(found, args.threads)


def print_ratios(found: list[dict], threads: list[int]) -> None:
    """For each weight and row count the native times, and what the others take of them."""
    most = threads[-1]
    columns = [f"native {n}" for n in threads] + [f"blas {n}" for n in threads] + ["numpy"]
    print(f"{'weight':22}{'rows':>5}" + "".join(f"{column + ' us':>16}" for column in columns), end="")
    print("".join(f"{f'blas/native {n}':>16}" for n in threads) + f"{f'numpy/native {most}':>16}")
    for kernel, rows in dict.fromkeys((one["kernel"], one["rows"]) for one in found):
        times = {one["engine"]: one for one in found if (one["kernel"], one["rows"]) == (kernel, rows)}
        cells = [f"{times[c]['median_us']:9.1f} ±{times[c]['iqr_us'] / 2:5.1f}" for c in columns]
        ratios = [times[f"blas {n}"]["median_us"] / times[f"native {n}"]["median_us"] for n in threads]
        ratios.append(times["numpy"]["median_us"] / times[f"native {most}"]["median_us"])
        print(f"{kernel:22}{rows:5}" + "".join(f"{c:>16}" for c in cells) + "".join(f"{r:16.2f}" for r in ratios))


if __name__ == "__main__":
    main()
