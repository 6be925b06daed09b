"""A thousand mutated job files: each is run as it says, or refused in one sentence before a model is loaded.

NANOVLLM_FUZZ, the number of mutated lines elsewhere, has a fifth as many job files here.
"""

import copy
import os
import random
from collections import Counter

import pytest
import yaml
from fake_llm import FakeLLM
from mutations import mutate_text, mutate_value

import jobs.cli
import nanovllm

NUM_FILES = int(os.environ.get("NANOVLLM_FUZZ", "5000")) // 5

SEEDS = [
    {
        "name": "n", "model": "m", "input": "in.jsonl", "output": "out", "progress": "none",
        "prompt": {"template": "{{ prompt }}!", "system": "Be brief.", "chat": True},
        "sampling": {"max_tokens": 4, "temperature": 0.5, "stop": ["x"], "seed": 7, "n": 2, "logit_bias": {"5": 1.0}},
        "engine": {"dtype": "auto", "threads": "auto", "max_model_len": 64, "kv_cache_memory": "1MiB", "seed": 1},
        "on_overlong": "truncate_left",
        "limits": {"deadline": "2h", "max_errors": 1, "max_error_rate": 0.5, "stop_early": True},
    },
    {
        "model": "m", "input": ["in.jsonl", "more.csv"], "output": "{name}-{date}", "progress": "plain", "limit": 3,
        "shard": "0/2", "restart": True, "input_format": "auto", "served_model_name": ["a", "b"],
        "return_token_ids": True,
        "sampling": {"top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": False},
    },
    {
        "model": "m", "input": "*.csv", "output": "out", "progress": "json",
        "prompt": {"template": "{{ question }}"},
        "eval": {
            "task": "generate", "target": "answer", "extract": [{"regex": "(.)", "which": "last"}, "strip"],
            "scorers": ["exact_match", {"numeric": {"tolerance": 0.1}}], "gate": {"exact_match": ">= 0.5"},
            "few_shot": {"num": 1, "input": "more.csv", "seed": 0}, "group": "id",
        },
    },
]  # fmt: skip
VALUES = [
    None, True, False, 0, -1, 1, 2, 2**70, 0.5, -0.5, 1e308, float("nan"), float("inf"), "", " ", "a", "x" * 500,
    "auto", "1e2", "010", "no", "2h", "1/0", "9/8", "{oops}", "${NANOVLLM_NO_SUCH_VARIABLE}", "{{ x", "{% endfor %}",
    "é\u2028", [], [[]], [None], ["a", 1], {}, {"a": {}}, {"": 1}, {"__class__": 1}, "in.jsonl", "*.nothing",
    "in.jsonl\0",
]  # fmt: skip
NEW_KEYS = ["eval", "sampling", "n", "deadline", "seed", "chat", "x"]
SNIPPETS = ["\t", ": ", "- ", "{", "}", "[", "]", "'", '"', "&a ", "*a", "!!python/object:os.system ", "!x ", "|\n",
            ">\n", "# ", "---\n", "...\n", "%YAML 9.9\n", "<<: *a\n", "? ", "\0", "\u2028", "\x85", "\ufeff",
            "  "]  # fmt: skip


def mutated_file(rng):
    value = copy.deepcopy(rng.choice(SEEDS))
    for _ in range(rng.choice([0, 1, 1, 2])):
        value = mutate_value(value, rng, VALUES, NEW_KEYS)
    text = yaml.safe_dump(value, allow_unicode=True, sort_keys=False, default_flow_style=rng.choice([None, False]))
    for _ in range(rng.choice([0, 0, 1, 2])):
        text = mutate_text(text, rng, SNIPPETS) or "\n"
    data = text.encode("utf-8")
    return data if rng.random() < 0.97 else data[: len(data) // 2] + b"\xff\xfe" + data[len(data) // 2 :]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to run in, and a model that answers at once."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "one"}\n{"prompt": 2}\n{"prompt": "three", "id": "x"}\n')
    (tmp_path / "more.csv").write_text("id,prompt,question,answer\n1,a,b,b\n2,c,d,e\n")
    monkeypatch.setattr(nanovllm, "resolve_model", lambda model, relative_to=None: tmp_path / "model", raising=False)
    monkeypatch.setattr(nanovllm, "LLM", lambda model, **settings: FakeLLM(), raising=False)
    # what takes the time: a thousand times the same parser, and waiting for the disk
    parser = jobs.cli.build_parser()
    monkeypatch.setattr(jobs.cli, "build_parser", lambda: parser)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path


def test_each_job_file_is_run_or_refused(folder, capsys):
    rng = random.Random("job files")
    codes = Counter()
    wrong = []
    for _ in range(NUM_FILES):
        data = mutated_file(rng)
        path = folder / "job.yaml"
        path.write_bytes(data)
        code = jobs.cli.main(["run", str(path), "--restart"])
        said = capsys.readouterr().err
        codes[code] += 1
        is_said = code != 2 or said.splitlines()[-1].startswith("nanovllm run: ")
        if code not in (0, 2, 3, 4) or "Traceback" in said or not is_said:
            wrong.append((data, said))
    assert not wrong
    assert min(codes[0] + codes[3] + codes[4], codes[2]) > NUM_FILES / 10, codes
