"""Join the runs of a job's shards into one run directory, as if one process had done them all.

Owns what may be joined: finished runs of one job, one model and one input, each part once and none missing. Streams: it
holds one row of each part.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs import json_text
from jobs.files import write_atomically
from jobs.run_directory import RunDirectory, unwritable
from jobs.sharding import parse_shard
from nanovllm import ConfigError

_COUNTS = ("rows", "ok", "errors", "skipped", "lines")
_TOKENS = ("prompt", "completion", "cached")


def merge_runs(out: Path, folders: list[Path], is_only_check: bool = False) -> dict[str, Any]:
    """Join finished shards, or only see whether they fit; gives the manifest of the whole.

    Raises:
        ConfigError: a part is not finished, missing, given twice, or of another job, model or input; or `out` is taken.
    """
    parts = [RunDirectory(folder) for folder in folders]
    manifests = [_finished_manifest(part) for part in parts]
    _check_shards(folders, manifests)
    _check_equal(folders, manifests)
    target = RunDirectory(out)
    for path in (target.results, target.manifest, target.journal, target.heads):
        if path.exists():
            raise ConfigError(f"{path} exists: choose another directory, nothing is overwritten")
    manifest = _sum(manifests, folders)
    if is_only_check:
        return manifest
    try:
        target.path.mkdir(parents=True, exist_ok=True)
        write_atomically(target.results, (line for _, lines in _rows(parts) for line in lines))
        write_atomically(target.heads, (head for head, _ in _rows(parts)))
        write_atomically(target.manifest, [(json_text.dumps(manifest, indent=2) + "\n").encode("utf-8")])
    except OSError as error:
        raise unwritable(out, error) from None
    return manifest


def _finished_manifest(part: RunDirectory) -> dict[str, Any]:
    manifest = part.read_manifest()
    if manifest is None:
        raise ConfigError(f"{part.path} is not the directory of a run: it has no manifest.json of one")
    if manifest.get("status") != "finished" or not part.results.exists() or not part.heads.exists():
        raise ConfigError(f"{part.path} is not finished ({manifest.get('status')}): run its command again first")
    return manifest


def _check_shards(folders: list[Path], manifests: list[dict[str, Any]]) -> None:
    first: dict[int, Path] = {}
    counts = set()
    for folder, manifest in zip(folders, manifests, strict=True):
        text = (manifest.get("job") or {}).get("shard")
        shard = parse_shard(text) if isinstance(text, str) else None
        if shard is None:
            raise ConfigError(f"{folder} is no shard: only runs made with --shard I/N are joined")
        counts.add(shard.count)
        if len(counts) > 1:
            raise ConfigError(f"{folder} is shard {shard}, and {folders[0]} is one of another number of shards")
        if shard.index in first:
            raise ConfigError(f"{folder} and {first[shard.index]} overlap: both are shard {shard}")
        first[shard.index] = folder
    missing = sorted(set(range(counts.pop())) - set(first))
    if missing:
        names = ", ".join(f"{index}/{len(first) + len(missing)}" for index in missing[:8])
        raise ConfigError(f"shards are missing: {names}: give the directories of all of them")


def _check_equal(folders: list[Path], manifests: list[dict[str, Any]]) -> None:
    reference = _comparable(manifests[0])
    for folder, manifest in zip(folders, manifests, strict=True):
        values = _comparable(manifest)
        different = sorted(key for key in values if values[key] != reference[key])
        if different:
            raise ConfigError(
                f"{folder} and {folders[0]} differ in {', '.join(different)}: do the shards again with one job, one "
                "model, one input and one kind of machine"
            )


def _comparable(manifest: dict[str, Any]) -> dict[str, Any]:
    job, engine, facts = (manifest.get(key) or {} for key in ("job", "engine", "facts"))
    values = {
        "model": (manifest.get("model") or {}).get("identity"),
        "tokenizer": manifest.get("tokenizer"),
        "dtype": engine.get("dtype"),
        "kv_cache_dtype": engine.get("kv_cache_dtype"),
        "gemm": (job.get("engine") or {}).get("gemm", "native"),
        "kernels": manifest.get("kernels"),
        "sampling": manifest.get("sampling"),
        "return_token_ids": bool(job.get("return_token_ids")),
        "engine.seed": engine.get("seed"),
        "prompt": [job.get("prompt"), job.get("on_overlong"), job.get("limit")],
        "input": [one.get("sha256") for one in manifest.get("input") or []],
        "eval": {key: value for key, value in (job.get("eval") or {}).items() if key != "gate"},
    }
    values.update({f"{key} (files)": value for key, value in facts.items() if key in ("model", "chat template")})
    return values


def _rows(parts: list[RunDirectory]) -> Iterator[tuple[bytes, list[bytes]]]:
    last = -1
    for index, head, lines in heapq.merge(*map(_rows_of, parts), key=lambda row: row[0]):
        if index == last:
            raise ConfigError(f"row {index} is in two of the runs: they overlap")
        last = index
        yield head, lines


def _rows_of(part: RunDirectory) -> Iterator[tuple[int, bytes, list[bytes]]]:
    with part.results.open("rb") as results, part.heads.open("rb") as heads:
        for head in heads:
            values = json.loads(head)
            lines = [results.readline() for _ in range(values["lines"])]
            if sum(map(len, lines)) != values["bytes"]:
                raise ConfigError(f"{part.results} does not fit {part.heads}: it was edited or cut; run it again")
            yield values["index"], head, lines


def _sum(manifests: list[dict[str, Any]], folders: list[Path]) -> dict[str, Any]:
    whole = dict(manifests[0])
    whole["job"] = {**whole["job"], "shard": None}
    whole["facts"] = None
    whole["merged_from"] = [str(folder) for folder in folders]
    whole["counts"] = {key: sum(one["counts"][key] for one in manifests) for key in _COUNTS}
    whole["tokens"] = {key: sum(one["tokens"][key] for one in manifests) for key in _TOKENS}
    whole["retryable_errors"] = sum(one.get("retryable_errors", 0) for one in manifests)
    by_code = sum((Counter(one["errors_by_code"]) for one in manifests), Counter())
    whole["errors_by_code"] = dict(sorted(by_code.items()))
    whole["tokens_per_s"] = round(sum(one["tokens_per_s"] for one in manifests), 3)
    whole["seconds"] = {key: round(sum(one["seconds"][key] for one in manifests), 3) for key in manifests[0]["seconds"]}
    whole["started"] = min(one["started"] for one in manifests)
    whole["ended"] = max(one["ended"] for one in manifests)
    whole["resumes"] = sum(one["resumes"] for one in manifests)
    whole["resumed"] = None
    job_limits = whole["job"]["limits"]
    allowed = max(job_limits["max_errors"], job_limits["max_error_rate"] * whole["counts"]["rows"])
    whole["exit_code"] = 0 if whole["counts"]["errors"] <= allowed else 3
    return whole
