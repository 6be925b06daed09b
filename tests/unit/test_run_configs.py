"""Every example in configs/ runs to a good end, with a fake model."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from eval_shop import EvalLLM
from fake_llm import FakeLLM

from jobs.job_file import load_job
from jobs.run import run_job

CONFIGS = Path(__file__).parents[2] / "configs"

NUM_ROWS = {
    "completion_text": 5,
    "csv_template": 6,
    "eval_classification": 30,
    "eval_gsm8k_8shot": 30,
    "eval_gsm8k_chat": 30,
    "eval_json_extraction": 20,
    "eval_multiple_choice": 30,
    "eval_perplexity": 1,
    "int8_engine": 28,
    "logprobs": 5,
    "long_prompts": 3,
    "many_inputs": 6,
    "messages_tools": 3,
    "openai_batch": 3,
    "quickstart": 28,
    "row_sampling": 5,
    "sampling_rules": 5,
    "sharded": 28,
    "shared_prefix": 6,
    "structured_output": 6,
    "token_ids": 3,
    "unattended": 28,
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_example(path, tmp_path):
    job = load_job(path)
    assert job.name == path.stem
    assert job.output.resolve().parent == CONFIGS.parent / "runs"
    job = dataclasses.replace(job, output=tmp_path / "run", progress="none")
    stderr = io.StringIO()
    llm = FakeLLM() if job.eval is None else EvalLLM(max_model_len=10_000)
    assert run_job(job, lambda job: llm, stderr) == 0, stderr.getvalue()
    counts = json.loads((tmp_path / "run" / "manifest.json").read_text())["counts"]
    num = NUM_ROWS[path.stem]
    assert (counts["rows"], counts["ok"], counts["errors"], counts["skipped"]) == (num, num, 0, 0)
