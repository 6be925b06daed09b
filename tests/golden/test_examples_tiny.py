"""Examples of configs/ on a tiny checkpoint: each feature leaves its trace in the results or the manifest."""

import json
from pathlib import Path

import pytest

from jobs.cli import main

MODEL = Path(__file__).parent / "models" / "llama-f32"
CONFIGS = Path(__file__).parents[2] / "configs"


def run(name, folder, *settings):
    flags = [flag for setting in settings for flag in ("--set", setting)]
    argv = ["run", str(CONFIGS / f"{name}.yaml"), "--model", str(MODEL), "--output", str(folder / "out")]
    assert main([*argv, "--progress", "none", *flags]) == 0
    lines = (folder / "out" / "results.jsonl").read_text("utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines], json.loads((folder / "out" / "manifest.json").read_text("utf-8"))


@pytest.mark.parametrize("name", ["completion_text", "csv_template", "many_inputs", "row_sampling", "sampling_rules"])
def test_an_example_is_run(name, tmp_path):
    lines, manifest = run(name, tmp_path, "on_overlong=truncate_left")
    assert manifest["counts"]["ok"] == manifest["counts"]["rows"] > 2
    assert {line["error"] for line in lines} == {None}


def test_a_shared_beginning_is_found_in_the_cache(tmp_path):
    lines, manifest = run("shared_prefix", tmp_path, "engine.max_num_seqs=1", "sampling.max_tokens=1", "limit=2")
    assert len(lines) == 2
    assert manifest["tokens"]["cached"] > 200


def test_log_probabilities_are_in_the_lines(tmp_path):
    lines, _ = run("logprobs", tmp_path)
    for line in lines:
        assert len(line["logprobs"]) == len(line["token_ids"]) <= 8
        assert len(line["prompt_logprobs"]) == line["usage"]["prompt_tokens"]


def test_weights_are_served_in_int8(tmp_path):
    lines, manifest = run("int8_engine", tmp_path, "limit=3", "sampling.max_tokens=4")
    assert manifest["engine"]["dtype"] == "int8"
    assert manifest["engine"]["kv_cache_bytes"] <= 128 << 20
    assert len(lines) == 3


def test_a_prompt_that_is_too_long_says_what_it_lost(tmp_path):
    lines, _ = run("long_prompts", tmp_path)
    cut = {line["id"]: line.get("num_cut_tokens", 0) for line in lines}
    assert cut["short"] == 0
    assert cut["long"] > 0
    assert lines[1]["usage"]["prompt_tokens"] <= 256 - 40


def test_ids_of_another_tokenizer_are_error_rows(tmp_path):
    lines, _ = run("token_ids", tmp_path, "limits.max_errors=3")
    assert [line["error"]["code"] for line in lines] == ["invalid_token_id"] * 3
