"""How much memory does a run take beside the model? Peak RSS of runs of short rows with a model that answers at once.

    nice python benchmarks/runner_memory.py [--rows 10000 1000000] [--ids]

Each size is a process of its own. `allowed` is 100 MB and 16 bytes for each row; exit code 1 when a run takes more.
With `--ids` rows bring ids of their own, which are remembered to find repeats.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIXED_MB = 100
BYTES_A_ROW = 16


def write_job(folder: Path, num_rows: int, has_ids: bool) -> Path:
    """Write a job of short rows, a piece at a time."""
    with (folder / "in.jsonl").open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            name = f'"id": "row-{number}", ' if has_ids else ""
            file.write(f'{{{name}"prompt": "a short row {number}"}}\n')
    path = folder / "job.yaml"
    path.write_text("model: fake\ninput: in.jsonl\noutput: out\nprogress: none\nsampling: {max_tokens: 1}\n", "utf-8")
    return path


def run(num_rows: int, has_ids: bool) -> None:
    """Run a job in this process and print its peak before and after, and its seconds."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "unit")]
    from fake_llm import FakeLLM

    from jobs.job_file import load_job
    from jobs.run import run_job

    with tempfile.TemporaryDirectory() as name:
        path = write_job(Path(name), num_rows, has_ids)
        llm = FakeLLM(window=64)
        llm.seen = deque(maxlen=0)  # it would remember every row
        before = peak_kb()
        began = time.monotonic()
        code = run_job(load_job(path), lambda job: llm, io.StringIO())
        seconds = time.monotonic() - began
        num_lines = sum(1 for _ in (Path(name) / "out" / "results.jsonl").open("rb"))
    if code != 0 or num_lines != num_rows:
        raise SystemExit(f"the run ended with {code} and {num_lines} of {num_rows} lines")
    print(before, peak_kb(), seconds)


def peak_kb() -> int:
    """Read the peak of this process; that of getrusage would count the process that started it too."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.split("VmHWM:")[1].split()[0])


def main() -> int:
    """Measure every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--ids", action="store_true", help="rows bring ids of their own")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        run(args.child, args.ids)
        return 0
    print(f"{'rows':>10}{'imports MB':>12}{'peak MB':>10}{'allowed MB':>12}{'rows/s':>10}")
    is_good = True
    for num_rows in args.rows:
        command = [sys.executable, __file__, "--child", str(num_rows), *(["--ids"] if args.ids else [])]
        before, peak, seconds = map(float, subprocess.run(command, stdout=-1, check=True, text=True).stdout.split())
        before, peak, allowed = before * 1.024e-3, peak * 1.024e-3, FIXED_MB + num_rows * BYTES_A_ROW / 1e6
        print(f"{num_rows:>10}{before:>12.1f}{peak:>10.1f}{allowed:>12.1f}{num_rows / seconds:>10.0f}", flush=True)
        is_good = is_good and peak <= allowed
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
