"""Evaluations on a real checkpoint: numbers are those of `LLM.score`, and a killed process ends in the same files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import nanovllm
from jobs.cli import main
from nanovllm import LLM

MODEL = Path(__file__).parent / "models" / "llama-f32"
ROOT = Path(__file__).parents[2]
NUM_ROWS = 300
CHOICES = """prompt: {template: "Q: {{ q }} A:", chat: false}
eval:
  task: multiple_choice
  choices: options
  target: gold
  metrics: [acc, acc_norm, acc_mutual_info]
  few_shot: {num: 2}
  gate: {acc: ">= %s"}
"""
GENERATE = """prompt: {template: "Q: {{ q }} A:", chat: false}
sampling: {max_tokens: 5, temperature: 0.9, n: 2, seed: 3}
eval: {task: generate, target: gold, scorers: [levenshtein], group: group}
"""


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("expected.*"))
    rows = [
        {"q": f"word {n}", "options": ["one", "two", "three"][: 2 + n % 2], "gold": n % 2, "group": n % 4}
        for n in range(NUM_ROWS)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def write(folder, text, output="out", model="model"):
    path = folder / f"{output}.yaml"
    path.write_text(
        f"name: tiny\nmodel: {model}\ninput: in.jsonl\noutput: {output}\nprogress: none\n"
        f"engine: {{dtype: float32, max_num_seqs: 4}}\n{text}"
    )
    return path


def lines_of(folder, output="out"):
    return [json.loads(line) for line in (folder / output / "results.jsonl").read_text("utf-8").splitlines()]


def test_likelihoods_are_those_of_score(folder):
    assert main(["run", str(write(folder, CHOICES % 0))]) == 0
    llm = LLM(folder / "model", dtype="float32")
    for line in lines_of(folder)[::97]:
        assert line["prompt"].count("Q: ") == 3
        texts = [" " + choice["text"] for choice in line["choices"]]
        (after, alone) = llm.score([line["prompt"], ""], [texts, texts], use_tqdm=False)
        assert [choice["logprob"] for choice in line["choices"]] == [output.logprob for output in after]
        assert [choice["logprob_unconditional"] for choice in line["choices"]] == [output.logprob for output in alone]
        sums = [output.logprob for output in after]
        assert line["scores"]["acc"] == float(sums.index(max(sums)) == line["target"])


def test_perplexity_is_that_of_the_whole_text(folder):
    text = "The sun is a star. " * 40
    (folder / "text.txt").write_text(text)
    path = write(folder, "eval: {task: perplexity, whole_file: true}\n")
    assert main(["run", str(path), "--input", str(folder / "text.txt"), "--set", "engine.max_model_len=32"]) == 0
    (line,) = lines_of(folder)
    (expected,) = LLM(folder / "model", dtype="float32", max_model_len=32).perplexity([text], use_tqdm=False)
    assert (line["logprob"], line["num_tokens"]) == (expected.logprob, expected.num_tokens)
    scores = json.loads((folder / "out" / "scores.json").read_text())
    assert scores["metrics"]["token_perplexity"]["value"] == pytest.approx(expected.perplexity)
    assert scores["metrics"]["byte_perplexity"]["value"] == pytest.approx(expected.byte_perplexity)


def test_a_finished_evaluation_is_judged_again_without_its_model(folder, monkeypatch, capsys):
    assert main(["run", str(write(folder, CHOICES % 1.01))]) == 4
    capsys.readouterr()

    def refuse(*arguments, **settings):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(nanovllm, "LLM", refuse)
    assert main(["run", str(folder / "out.yaml")]) == 4
    said = capsys.readouterr().err
    assert f"already finished, nothing changed: {NUM_ROWS} rows" in said
    assert "gate: " in said
    assert main(["run", str(write(folder, CHOICES % 0))]) == 0
    assert "already finished" in capsys.readouterr().err


@pytest.mark.parametrize("text", [CHOICES % 0, GENERATE], ids=["choices", "generate"])
def test_a_killed_process_ends_in_the_same_files(folder, text):
    assert main(["run", str(write(folder, text, "whole"))]) == 0
    path = write(folder, text)
    journal = folder / "out" / "journal.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", "run", str(path)], cwd=ROOT, stderr=subprocess.DEVNULL, env=os.environ
    )
    try:  # to be killed when some rows are in the journal, and long before the last one is
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > 4000):
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert main(["run", str(path)]) == 0
    for name in ("results.jsonl", "rows.jsonl", "scores.json"):
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    resumed = json.loads((folder / "out" / "manifest.json").read_text())["resumed"]
    assert resumed["kept"] > 0
    assert resumed["new"] > 0


def test_merged_shards_are_scored_as_one_run(folder):
    assert main(["run", str(write(folder, CHOICES % 0, "whole"))]) == 0
    path = write(folder, CHOICES % 0)
    for part in (0, 1):
        assert main(["run", str(path), "--shard", f"{part}/2"]) == 0
    assert main(["merge", str(folder / "out"), str(folder / "out-0-of-2"), str(folder / "out-1-of-2")]) == 0
    assert main(["run", str(path)]) == 0
    for name in ("results.jsonl", "scores.json"):
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()
