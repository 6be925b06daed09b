"""`nanovllm run` and `generate` through the real engine, on a tiny checkpoint with recorded greedy ids.

Oracle: expected.json beside the checkpoint (see tests/golden/models).
"""

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.cli import main
from nanovllm import LLM, Tokenizer

MODEL = Path(__file__).parent / "models" / "llama-f32"
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def expected():
    return json.loads((MODEL / "expected.json").read_text("utf-8"))


def recorded_text(prompt):
    """The text that the recorded ids add to the prompt; no prompt here has a near tie among the first ids."""
    tie = prompt["first_near_tie_step"]
    assert tie is None or tie >= NUM_TOKENS
    tokenizer = Tokenizer.from_pretrained(MODEL)
    text = tokenizer.decode(prompt["ids"] + prompt["greedy_ids"][:NUM_TOKENS])
    return text.removeprefix(tokenizer.decode(prompt["ids"]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, expected):
    """Run all recorded prompts, with a bad line and a chat among them; gives (exit code, lines, manifest)."""
    folder = tmp_path_factory.mktemp("run")
    rows = [json.dumps({"id": f"p{i}", "prompt_token_ids": p["ids"]}) for i, p in enumerate(expected["prompts"])]
    rows.insert(2, '{"prompt": ')
    rows.append(json.dumps({"id": "chat", "messages": [{"role": "user", "content": "Hello"}], "kept": 1}))
    rows.append(json.dumps({"id": "long", "prompt": "word " * 5000}))
    (folder / "in.jsonl").write_text("\n".join(rows))
    (folder / "job.yaml").write_text(
        f"model: {MODEL}\ninput: in.jsonl\noutput: out\nprogress: none\nlimits: {{max_errors: 2}}\nengine: {{dtype: float32}}\n"
        f"sampling: {{max_tokens: {NUM_TOKENS}, temperature: 0, ignore_eos: true, skip_special_tokens: true}}\n"
    )
    code = main(["run", str(folder / "job.yaml")])
    lines = [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text("utf-8").split("\n")[:-1]]
    return code, lines, json.loads((folder / "out" / "manifest.json").read_text("utf-8"))


def test_the_run_ends_well_with_one_line_for_each_row(finished, expected):
    code, lines, manifest = finished
    num_rows = len(expected["prompts"]) + 3
    assert code == 0
    assert [line["index"] for line in lines] == list(range(num_rows))
    assert [line["id"] for line in lines] == ["p0", "p1", "2", "p2", "p3", "p4", "p5", "chat", "long"]
    counts = manifest["counts"]
    assert (counts["rows"], counts["ok"], counts["errors"], counts["skipped"]) == (num_rows, num_rows - 2, 2, 0)
    assert manifest["errors_by_code"] == {"invalid_row": 1, "prompt_too_long": 1}


def test_texts_are_those_of_the_recorded_ids(finished, expected):
    lines = {line["id"]: line for line in finished[1]}
    for i, prompt in enumerate(expected["prompts"]):
        line = lines[f"p{i}"]
        assert line["text"] == recorded_text(prompt)
        assert line["finish_reason"] == "length"
        assert line["usage"]["prompt_tokens"] == len(prompt["ids"])
        assert line["usage"]["completion_tokens"] == NUM_TOKENS
    assert lines["chat"]["row"]["kept"] == 1


def test_the_manifest_identifies_model_and_tokenizer(finished):
    manifest = finished[2]
    assert manifest["model"]["identity"]
    assert manifest["tokenizer"]["sha256"]
    assert manifest["engine"]["dtype"] == "float32"
    assert manifest["sampling"]["temperature"] == {"value": 0.0, "origin": "job"}


def test_streaming_prints_the_same_text(capsys):
    command = ["generate", str(MODEL), "Hello, world!", "--temperature", "0", "--max-tokens", "24"]
    assert main(command) == 0
    whole = capsys.readouterr().out
    assert main([*command, "--stream"]) == 0
    assert capsys.readouterr().out == whole
    assert len(whole) > 1


def test_top_logits_are_the_recorded_ones(expected):
    logits = np.load(MODEL / "expected.npz")["last_logits_2"]
    ids = expected["prompts"][2]["ids"]
    rows = LLM(MODEL, dtype="float32").top_logits({"prompt_token_ids": ids}, 3)
    best = np.argsort(-logits)[:3]
    assert [row[0] for row in rows] == best.tolist()
    assert np.allclose([row[1] for row in rows], logits[best], atol=1e-3)
