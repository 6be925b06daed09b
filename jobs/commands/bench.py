"""`nanovllm bench`: how fast a model runs here, beside what the machine can do at most."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from jobs import exit_codes

EXAMPLE = "nanovllm bench ./demo-model --dtype bfloat16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("model", metavar="MODEL", help="Hugging Face directory or hub id")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or int8")
    parser.add_argument("--kv-cache-dtype", default="auto", help="auto, float32, bfloat16 or int8")
    parser.add_argument("--gemm", default="native", help="native, or blas (float32 only)")
    parser.add_argument("--threads", type=int, default=None, help="default: what affinity and cgroup allow")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each kind; the median is shown")
    parser.add_argument(
        "--check-invariance", action="store_true", help="check instead that no request depends on what runs beside it"
    )
    parser.add_argument("--requests", type=int, default=60, help="with --check-invariance: how many requests")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    from nanovllm import bench_model, check_invariance, resolve_model

    settings: dict[str, Any] = {
        "dtype": arguments.dtype, "kv_cache_dtype": arguments.kv_cache_dtype, "gemm": arguments.gemm,
    }  # fmt: skip
    if arguments.threads is not None:
        settings["threads"] = arguments.threads
    if arguments.check_invariance:
        settings |= {"num_requests": arguments.requests, "progress": _say}
        return _show_invariance(check_invariance(resolve_model(arguments.model), **settings), arguments)
    result = bench_model(resolve_model(arguments.model), repeats=arguments.repeats, progress=_say, **settings)
    if arguments.json:
        from jobs import json_text

        print(json_text.dumps(result, indent=2))
    else:
        print("\n".join(_lines(result)))
    return 0


def _show_invariance(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> int:
    if arguments.json:
        from jobs import json_text

        print(json_text.dumps(rows, indent=2))
    else:
        print(f"{'against each request alone':<34}{'different':>10}{'preemptions':>13}")
        for row in rows:
            print(f"{row['variant']:<34}{row['different']:>10}{row['preemptions']:>13}")
    return exit_codes.GATE_FAILED if any(row["different"] for row in rows) else exit_codes.OK


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _lines(result: dict[str, Any]) -> list[str]:
    head = [
        f"{result['model']}: {result['dtype']}, KV cache {result['kv_cache_dtype']}, kernels {result['kernels']}, "
        f"{result['threads']} threads, loaded in {result['load_s']} s",
        f"ceilings: read {result['read_bandwidth_gb_s']} GB/s, multiply "
        + ", ".join(f"{peak} ({kind})" for kind, peak in result["peaks_gflop_s"].items())
        + f" GFLOP/s; load average {result['load_average']}",
        f"{'':<14}{'tokens/s':>10}{'lowest':>10}{'highest':>10}{'of the floor':>14}",
    ]
    return head + [
        f"{row['what']:<14}{row['tokens_per_s']:>10}{row['lowest']:>10}{row['highest']:>10}"
        f"{row['share_of_floor']:>13.0%}"
        for row in result["measurements"]
    ]
