"""Directories of finished runs, made by hand, for tests of the report."""

import json

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)> \"'`&amp; "
    "\0\x1b[31m \u202etxt.exe \ud800 \u200f שלום </pre>"
)
MANIFEST = {
    "schema_version": 1, "kind": "nanovllm-run", "status": "finished", "exit_code": 0, "error": None,
    "job": {"name": "arithmetic", "path": "arithmetic.yaml", "shard": None,
            "prompt": {"template": None, "system": None, "chat": False}},
    "model": {"name": "small-model", "path": "models/small", "identity": "7" * 64, "architecture": "llama",
              "parameters": 134515008},
    "input": [{"path": "questions.jsonl", "sha256": "a" * 64, "bytes": 100}],
    "sampling": {"temperature": {"value": 0.0, "origin": "job"}, "top_k": {"value": 0, "origin": "built-in"}},
    "engine": {"dtype": "float32", "threads": 2}, "kernels": "avx2",
    "cpu": {"model": "Some CPU", "architecture": "x86_64", "features": ["avx", "avx2"]},
    "versions": {"nanovllm": "0.1.0"}, "started": "2026-01-01T10:00:00+00:00", "ended": "2026-01-01T10:01:00+00:00",
    "resumes": 0, "resumed": None, "counts": {"rows": 0, "ok": 0, "errors": 0, "skipped": 0, "lines": 0},
    "errors_by_code": {}, "tokens": {"prompt": 1000, "completion": 500, "cached": 300}, "tokens_per_s": 123.4,
    "seconds": {"load": 1.5, "generate": 65.0},
}  # fmt: skip
SERIES = {
    "seconds": [2.0, 4.0, 6.0, 8.0],
    "rows": [1, 3, 5, 6],
    "completion_tokens": [20, 100, 160, 180],
}


def estimate(value, low, high, n, **more):
    return {"value": value, "stderr": (high - low) / 3.92, "low": low, "high": high, "n": n, "method": "wilson", **more}


def error_line(index, code, message, is_judged):
    line = {"id": f"q{index}", "index": index, "sample": 0, "text": None, "finish_reason": "error",
            "usage": None, "error": {"code": code, "message": message, "retryable": False}, "row": {}}  # fmt: skip
    judgement = {"prompt_hash": "0" * 16, "target": "0", "extracted": None, "scores": {}, "group": None}
    return {**line, **judgement} if is_judged else line


def result_line(index, question, output, **more):
    return {
        "id": f"q{index}", "index": index, "sample": 0, "text": output, "finish_reason": "stop", "stop_reason": None,
        "usage": {"prompt_tokens": 10 + index, "completion_tokens": 3 * index + 1}, "error": None, **more,
        "row": {"prompt": question, "number": index},
    }  # fmt: skip


def judged_line(index, output, target, extracted, right, **more):
    judgement = {
        "prompt": f"What is {index} + {index}?", "prompt_hash": "0" * 16, "target": target, "extracted": extracted,
        "scores": {"exact_match": float(right)}, "group": f"group {index % 3}",
    }  # fmt: skip
    return result_line(index, "", output, **{**judgement, **more})


def write_run(folder, lines, scores=None, series=SERIES, **manifest):
    """Write the files of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    errors = [line["error"] for line in lines if line.get("error")]
    counts = {"rows": len(lines), "ok": len(lines) - len(errors), "errors": len(errors), "skipped": 0}
    values = {**MANIFEST, "counts": {**counts, "lines": len(lines)}, **manifest}
    (folder / "manifest.json").write_text(json.dumps(values))
    (folder / "status.json").write_text(json.dumps({"phase": "finished", "exit_code": 0, "series": series}))
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if scores is not None:
        (folder / "scores.json").write_text(json.dumps(scores))
    return folder


def generation_run(folder, lines=None, **more):
    """Six answered rows and a refused one."""
    if lines is None:
        lines = [result_line(i, f"Say the number {i}.", f"The number is {i}.") for i in range(6)]
        lines.append(error_line(6, "prompt_too_long", "the prompt has 99 tokens and max_model_len is 50", False))
    return write_run(folder, lines, **more)


def evaluation_run(folder, wrong=(1, 4), num=9, lines=None, **more):
    """Questions of three groups; those in `wrong` are answered wrongly."""
    if lines is None:
        lines = []
        for i in range(num):
            answer = 2 * i + (i in wrong)
            lines.append(judged_line(i, f"Let me think. The sum is {answer}.", str(2 * i), str(answer), i not in wrong))
    share = 1 - len(wrong) / num
    groups = {f"group {i}": {"exact_match": estimate(0.5 + i / 10, 0.3, 0.9, 3)} for i in range(3)}
    scores = {
        "schema_version": 1, "name": "arithmetic", "task": "generate", "model": "small-model",
        "rows": {"total": num, "scored": num, "errors": 0, "skipped": 0},
        "metrics": {"exact_match": estimate(share, share - 0.2, min(share + 0.2, 1.0), num, higher_is_better=True)},
        "groups": groups, "hashes": {"data": "d" * 64, "prompts": "e" * 64, "targets": "f" * 64},
        "eval": {"scorers": ["exact_match"], "extract": [{"regex": r"(\d+)", "which": "last"}]},
    }  # fmt: skip
    return write_run(folder, lines, scores=more.pop("scores", scores), **more)
