"""Directories of finished evaluations, written by hand in the layout that `nanovllm run` gives them."""

import json


def write_evaluation(
    folder,
    scores,
    metric="exact_match",
    *,
    task="generate",
    higher_is_better=True,
    groups=None,
    data="d" * 64,
    **values,
):
    """Write an evaluation whose rows have the ids q0, q1, … and these scores.

    Args:
        folder: the directory to make.
        scores: a number for each row; None is an error row, "skipped" a skipped one, a list has a number a sample.
        metric: name of the metric.
        task, higher_is_better, data: as in `scores.json`.
        groups: a group for each row.
        values: more keys of the metric's entry.
    """
    lines = []
    for index, score in enumerate(scores):
        for sample, one in enumerate(score if isinstance(score, list) else [score]):
            lines.append(row(index, one, metric, sample, group=None if groups is None else groups[index]))
    known = [one for one in scores if isinstance(one, int | float)]
    entry = {"value": sum(known) / len(known) if known else None, "stderr": None, "low": None, "high": None}
    entry.update(n=len(known), method="none", higher_is_better=higher_is_better)
    return write_files(folder, lines, {metric: {**entry, **values}}, task, data)


def write_files(folder, lines, metrics, task="generate", data="d" * 64, **settings):
    """Write the three files of an evaluation."""
    folder.mkdir(parents=True)
    scores = {
        "schema_version": 1,
        "name": folder.name,
        "task": task,
        "model": "m",
        "rows": {"total": len(lines), "scored": len(lines), "errors": 0, "skipped": 0},
        "metrics": metrics,
        "groups": {},
        "hashes": {"data": data, "prompts": "p" * 64, "targets": "t" * 64},
        "eval": {"task": task, **settings},
    }
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "manifest.json").write_text(json.dumps({"kind": "nanovllm-run", "status": "finished"}))
    return folder


def row(index, score, metric="exact_match", sample=0, **values):
    """Give a line of the results."""
    line = {
        "id": f"q{index}",
        "index": index,
        "sample": sample,
        "text": "x",
        "finish_reason": "stop",
        "stop_reason": None,
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
        "error": None,
        "prompt": f"question {index}",
        "prompt_hash": f"{index:016x}",
        "target": str(index),
        "extracted": "x",
        "scores": {metric: score},
        "group": None,
        "row": {},
    }
    if score is None or score == "skipped":
        line.update(finish_reason=score or "error", text=None, scores={}, extracted=None)
        line["error"] = {"code": "prompt_too_long", "message": "too long", "retryable": False}
    return {**line, **values}


def text_row(index, logprob, num_tokens, num_words=1, num_bytes=1):
    """Give a line of the results of a perplexity."""
    line = row(index, 0, target=None, extracted=None, scores={}, text=None)
    return {**line, "logprob": logprob, "num_tokens": num_tokens, "num_words": num_words, "num_bytes": num_bytes}
