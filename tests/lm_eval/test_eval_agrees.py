"""Evaluations of job files against lm-evaluation-harness itself over the same tiny model: same samples, same scores."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("datasets", reason="lm-evaluation-harness is not installed (extra lm-eval)")
pytest.importorskip("lm_eval.evaluator", reason="lm-evaluation-harness is not installed (extra lm-eval)")

from jobs.cli import main

MODEL = Path(__file__).parents[1] / "golden" / "models" / "llama-f32"
ROWS = [
    {"q": f"Which word is number {n}?", "options": ["one", "twenty", "of the"][: 2 + n % 2], "gold": n % 2}
    for n in range(12)
]
COMMON_KEYS = (
    "doc_id",
    "doc",
    "target",
    "resps",
    "filtered_resps",
    "doc_hash",
    "prompt_hash",
    "target_hash",
    "metrics",
)


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("expected.*"))
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    train = [{"q": f"Which is {n}?", "options": ["a", "b"], "gold": n % 2} for n in range(3)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    return tmp_path


def theirs(folder, lm, task):
    """Samples by row, and the results, of a task in the harness."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    task = {
        "task": "tiny", "dataset_path": "json", "test_split": "test", "fewshot_split": "train",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "in.jsonl"), "train": str(folder / "train.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "fewshot_config": {"sampler": "first_n"}, **task,
    }  # fmt: skip
    manager = TaskManager(include_defaults=False)
    found = simple_evaluate(lm, tasks=[task], task_manager=manager, log_samples=True, bootstrap_iters=10)
    samples = sorted(found["samples"]["tiny"], key=lambda sample: sample["doc_id"])
    return json.loads(json.dumps(samples, default=str)), found["results"]["tiny"]


def ours(folder, text):
    path = folder / "tiny.yaml"
    path.write_text("model: model\ninput: in.jsonl\noutput: out\nprogress: none\nengine: {dtype: float32}\n" + text)
    assert main(["run", str(path)]) == 0
    (samples,) = (folder / "out").glob("samples_tiny_*.jsonl")
    (results,) = (folder / "out").glob("results_*.json")
    lines = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]
    return lines, json.loads(results.read_text("utf-8"))["results"]["tiny"]


def texts(value):
    """Write numbers as texts, as the harness does in its files."""
    return [texts(item) for item in value] if isinstance(value, list) else str(value)


def compare(mine, other, metrics):
    samples, results = mine
    assert len(samples) == len(other[0]) == len(ROWS)
    for sample, expected in zip(samples, other[0], strict=True):
        assert list(sample) == list(expected)
        arguments = [list(arguments.values()) for arguments in sample["arguments"].values()]
        assert [one[0] for one in arguments] == [one[0] for one in expected["arguments"]]
        for key in (*COMMON_KEYS, *metrics):
            wanted = expected[key]
            if key in ("resps", "filtered_resps"):
                wanted = texts(wanted)
            assert sample[key] == (str(wanted) if key == "target" else wanted), key
    for metric in metrics:
        assert results[f"{metric},none"] == pytest.approx(other[1][f"{metric},none"])


@pytest.mark.parametrize("num", [0, 2])
def test_multiple_choice(folder, make_lm, num):
    metrics = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
    task = {
        "output_type": "multiple_choice", "doc_to_text": "{{q}}\nAnswer:", "doc_to_choice": "{{options}}",
        "doc_to_target": "gold", "num_fewshot": num, "metric_list": [{"metric": metric} for metric in metrics],
    }  # fmt: skip
    text = (
        'prompt: {template: "{{ q }}\\nAnswer:", chat: false}\n'
        "eval: {task: multiple_choice, choices: options, target: gold, format: lm_eval, "
        f"metrics: [{', '.join(metrics)}], few_shot: {{num: {num}, input: train.jsonl, sampler: first}}}}\n"
    )
    compare(ours(folder, text), theirs(folder, make_lm(), task), metrics)


def test_generate(folder, make_lm):
    task = {
        "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{options[0]}}", "num_fewshot": 2,
        "gen_prefix": "It is", "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    text = (
        'prompt: {template: "{{ q }}", chat: false}\nsampling: {max_tokens: 6}\n'
        "eval: {task: generate, target: '{{ options[0] }}', gen_prefix: It is, extract: [], format: lm_eval, "
        "few_shot: {num: 2, input: train.jsonl, sampler: first}}\n"
    )
    compare(ours(folder, text), theirs(folder, make_lm(), task), ("exact_match",))
