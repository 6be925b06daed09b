"""lm-evaluation-harness with its `hf` model beside nanovllm on the same tasks: are scores equal, and how fast is each.

    python benchmarks/lm_eval_peer.py compare MODEL --peer PYTHON --choices F --gsm8k F --text F [--record FILE]
    python benchmarks/lm_eval_peer.py speed MODEL --peer PYTHON --choices F [--dtype bfloat16] [--rounds 3]

PYTHON is that of an environment with `lm-eval[hf]`; this script itself runs where nanovllm and lm-eval are. The tasks
are those of tests/lm_eval/tasks, pointed at the files given: choices and gsm8k as JSON lines with the columns that the
tasks name, text as plain text or as such lines. Each measurement is a process of its own, so that none finds another's
caches; loading the model is not in its seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TASKS = ROOT / "tests" / "lm_eval" / "tasks"
CHOICES, GSM8K, TEXT = "local_choices", "local_gsm8k", "local_text"
MARGIN = 1e-3  # of the two best logits; below it, rounding may choose another token


# ---- one backend on one task, in a process of its own


def run_child(spec: dict[str, Any]) -> dict[str, Any]:
    """Evaluate what `spec` says with the harness; returns its scores, its raw responses and the seconds."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    lm = _hf(spec) if spec["backend"] == "hf" else _nanovllm(spec)
    seconds: dict[str, float] = {}
    for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        _time(lm, kind, seconds)
    manager = TaskManager(include_path=spec["folder"])
    started = time.perf_counter()
    results = simple_evaluate(
        model=lm, tasks=[spec["task"]], task_manager=manager, limit=spec["limit"],
        num_fewshot=spec["num_fewshot"], bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    seconds["all"] = time.perf_counter() - started
    samples = results["samples"][spec["task"]]
    return {
        "seconds": seconds,
        "scores": {key: value for key, value in results["results"][spec["task"]].items() if "," in key},
        "responses": [_responses(sample) for sample in sorted(samples, key=lambda sample: sample["doc_id"])],
    }


def _responses(sample: dict[str, Any]) -> dict[str, Any]:
    """Return a document's prompts and the answer to each."""
    return {
        "id": sample["doc_id"],
        "prompts": [arguments[0] for arguments in sample["arguments"]],
        "answers": [answers[0] for answers in sample["resps"]],
    }


def _time(lm: Any, kind: str, seconds: dict[str, float]) -> None:
    method = getattr(lm, kind)

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            seconds[kind] = seconds.get(kind, 0.0) + time.perf_counter() - started

    setattr(lm, kind, timed)


def _hf(spec: dict[str, Any]) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(spec["threads"])
    return HFLM(
        pretrained=spec["model"], dtype=spec["dtype"], device="cpu", batch_size=spec["batch_size"],
        max_length=spec["max_length"],
    )  # fmt: skip


def _nanovllm(spec: dict[str, Any]) -> Any:
    sys.path.insert(0, str(ROOT))
    from jobs.lm_eval_adapter import NanovllmLM

    return NanovllmLM(spec["model"], dtype=spec["dtype"], max_length=spec["max_length"], threads=spec["threads"])


# ---- both backends


class Pair:
    """Runs either backend on a task.

    Args:
        arguments: of the command line; `folder` gets the task files and the data sets that the harness makes of them.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path):
        self._arguments, self._folder = arguments, folder
        texts = arguments.text
        if texts and not texts.endswith(".jsonl"):
            text = Path(texts).read_text("utf-8")[: arguments.characters]
            texts = folder / "texts.jsonl"
            texts.write_text(json.dumps({"text": text}) + "\n", "utf-8")
        for task, data in ((CHOICES, arguments.choices), (GSM8K, arguments.gsm8k), (TEXT, texts)):
            settings = yaml.safe_load((TASKS / f"{task}.yaml").read_text("utf-8"))
            if data is not None:
                settings["dataset_kwargs"]["data_files"] = {"test": str(Path(data).resolve())}
                if arguments.same_examples:
                    settings["fewshot_config"] = {"sampler": "first_n"}
                (folder / f"{task}.yaml").write_text(yaml.safe_dump(settings), "utf-8")

    def run(self, backend: str, task: str, limit: int | None, num_fewshot: int, batch_size: int = 1) -> dict[str, Any]:
        """Return what `run_child` gives in a new process."""
        arguments = self._arguments
        spec = {
            "backend": backend, "task": task, "limit": limit, "num_fewshot": num_fewshot, "batch_size": batch_size,
            "model": str(Path(arguments.model).resolve()), "dtype": arguments.dtype, "threads": arguments.threads,
            "max_length": arguments.max_length, "folder": str(self._folder), "out": str(self._folder / "out.json"),
        }  # fmt: skip
        offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"), "1")
        python = arguments.peer if backend == "hf" else sys.executable
        ended = subprocess.run(
            [python, __file__, "child", json.dumps(spec)], capture_output=True, text=True, check=False,
            env={**os.environ, **offline, "HF_DATASETS_CACHE": str(self._folder / "datasets")},
        )  # fmt: skip
        if ended.returncode != 0:
            raise SystemExit(f"{backend} on {task} failed:\n{ended.stderr[-4000:]}")
        result = json.loads(Path(spec["out"]).read_text("utf-8"))
        print(f"{backend} {task}: {result['seconds']['all']:.1f} s, {result['scores']}", file=sys.stderr, flush=True)
        return result


def compare(arguments: argparse.Namespace, pair: Pair) -> int:
    """Print how far the two backends are apart; 1 if further than they may be."""
    recorded, verdicts = {}, []
    for task, limit, batch_size in (
        (CHOICES, arguments.num_choices, arguments.batch_size),
        (TEXT, None, 1),
        (GSM8K, arguments.num_questions, 1),  # in a batch, the hf model pads prompts, which changes roundings
    ):
        if task not in arguments.only.split(","):
            continue
        theirs = pair.run("hf", task, limit, arguments.num_fewshot if task == CHOICES else 0, batch_size)
        ours = pair.run("nanovllm", task, limit, arguments.num_fewshot if task == CHOICES else 0)
        recorded[task] = {"scores": theirs["scores"], "responses": theirs["responses"]}
        verdicts += _verdicts(task, theirs, ours, arguments)
    print(f"{'task':<16}{'what':<44}{'found':>14}{'allowed':>10}")
    for task, what, found, allowed in verdicts:
        print(f"{task:<16}{what:<44}{found:>14.3g}{allowed:>10.3g}{'' if found <= allowed else '  TOO FAR'}")
    if arguments.record:
        Path(arguments.record).write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return int(any(found > allowed for _, _, found, allowed in verdicts))


def _verdicts(
    task: str, theirs: dict, ours: dict, arguments: argparse.Namespace
) -> list[tuple[str, str, float, float]]:
    pairs = [
        (a, b, one["prompts"][i])
        for one, other in zip(theirs["responses"], ours["responses"], strict=True)
        for i, (a, b) in enumerate(zip(one["answers"], other["answers"], strict=True))
    ]
    if task == CHOICES:
        rows = [("log likelihood of a choice, difference", max(abs(a[0] - b[0]) for a, b, _ in pairs), 1e-3)]
        rows += [
            ("choices judged greedy by one alone, of " + str(len(pairs)), sum(a[1] != b[1] for a, b, _ in pairs), 0)
        ]
        for metric in ("acc,none", "acc_norm,none"):
            difference = abs(theirs["scores"][metric] - ours["scores"][metric])
            rows += [(f"{metric.split(',')[0]} {theirs['scores'][metric]:.4f}, difference", difference, 1e-9)]
    elif task == TEXT:
        rows = [("log likelihood of a text, relative", max(abs(a / b - 1) for a, b, _ in pairs), 1e-4)]
        for metric in ("word_perplexity,none", "byte_perplexity,none", "bits_per_byte,none"):
            difference = abs(theirs["scores"][metric] / ours["scores"][metric] - 1)
            rows += [(f"{metric.split(',')[0]} {theirs['scores'][metric]:.5g}, relative", difference, 1e-3)]
    else:
        differing = [(a, b, prompt) for a, b, prompt in pairs if a != b]
        rows = [(f"strings of {len(pairs)} that differ", len(differing), len(pairs))]
        margins = _margins(differing, arguments)
        rows += [("largest margin where they part", max(margins, default=0.0), MARGIN)]
    return [(task, *row) for row in rows]


def _margins(differing: list[tuple[str, str, str]], arguments: argparse.Namespace) -> list[float]:
    """Return for each pair of texts the margin of the two best logits where their tokens part."""
    if not differing:
        return []
    sys.path.insert(0, str(ROOT))
    from nanovllm import LLM

    llm, margins = LLM(arguments.model, dtype=arguments.dtype, max_model_len=arguments.max_length), []
    for theirs, ours, prompt in differing:
        one, other = (llm.get_tokenizer().encode(prompt + text) for text in (theirs, ours))
        begin = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        (_, best, _), (_, second, _) = llm.top_logits(one[:begin], 2)
        margins.append(best - second)
        print(f"parted after {begin} tokens, margin {margins[-1]:.2g}: {theirs!r} {ours!r}", file=sys.stderr)
    return margins


def speed(arguments: argparse.Namespace, pair: Pair) -> int:
    """Print seconds and the ratio; the two alternate, and hf has the batch size that is best for it."""
    sizes = [int(size) for size in arguments.batch_sizes.split(",")]
    best = sizes[0]
    if len(sizes) > 1:
        first = {size: pair.run("hf", CHOICES, arguments.num_choices, arguments.num_fewshot, size) for size in sizes}
        best = min(first, key=lambda size: first[size]["seconds"]["all"])
        print("hf by batch size: " + ", ".join(f"{size}: {one['seconds']['all']:.1f} s" for size, one in first.items()))
    rounds = []
    for _ in range(arguments.rounds):
        theirs = pair.run("hf", CHOICES, arguments.num_choices, arguments.num_fewshot, best)["seconds"]
        ours = pair.run("nanovllm", CHOICES, arguments.num_choices, arguments.num_fewshot)["seconds"]
        rounds.append((theirs, ours))
        print(
            f"whole evaluation: hf (batch {best}) {theirs['all']:.1f} s, nanovllm {ours['all']:.1f} s, "
            f"ratio {theirs['all'] / ours['all']:.2f}; log likelihoods alone: {theirs['loglikelihood']:.1f} s, "
            f"{ours['loglikelihood']:.1f} s, ratio {theirs['loglikelihood'] / ours['loglikelihood']:.2f}",
            flush=True,
        )
    for what in ("all", "loglikelihood"):
        ratios = sorted(theirs[what] / ours[what] for theirs, ours in rounds)
        print(f"ratio of {what}: median {statistics.median(ratios):.2f}, lowest {ratios[0]:.2f}")
    return 0


def main() -> int:
    """Read the command line and do one of the two."""
    if sys.argv[1:2] == ["child"]:
        # Packages look for optional ones by names such as kernels; the scripts beside this one are none of them.
        sys.path.remove(str(Path(__file__).resolve().parent))
        spec = json.loads(sys.argv[2])
        Path(spec["out"]).write_text(json.dumps(run_child(spec)), "utf-8")
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("compare", "speed"))
    parser.add_argument("model")
    parser.add_argument("--peer", required=True, help="Python of the environment with lm-eval[hf]")
    parser.add_argument("--choices")
    parser.add_argument("--gsm8k")
    parser.add_argument("--text")
    parser.add_argument("--only", default=f"{CHOICES},{TEXT},{GSM8K}", help="compare only these tasks")
    parser.add_argument("--num-choices", type=int, default=300)
    parser.add_argument("--num-questions", type=int, default=50)
    parser.add_argument("--characters", type=int, default=60_000, help="of the text")
    parser.add_argument("--num-fewshot", type=int, default=None, help="for choices; default: 0, for speed 5")
    parser.add_argument("--same-examples", action="store_true", help="the first ones for every item, not drawn anew")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch-size", type=int, default=8, help="of hf in a comparison")
    parser.add_argument("--batch-sizes", default="1,4,16,64", help="that hf may have in a measurement of speed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", help="write what the hf model answered to this file")
    arguments = parser.parse_args()
    if arguments.num_fewshot is None:
        arguments.num_fewshot = 5 if arguments.action == "speed" else 0
    with tempfile.TemporaryDirectory() as folder:
        return {"compare": compare, "speed": speed}[arguments.action](arguments, Pair(arguments, Path(folder)))


if __name__ == "__main__":
    raise SystemExit(main())
