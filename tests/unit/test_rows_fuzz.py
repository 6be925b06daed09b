"""Five thousand mutated lines, rows of columns and lines of a batch: none breaks the run, and each is accounted for.

NANOVLLM_FUZZ sets another number of lines.
"""

import io
import json
import os
import random
from pathlib import Path

import pytest
from mutations import mutate_text, mutate_value

from jobs.job_file import load_job
from jobs.run import run_job
from nanovllm import LLM

MODEL = Path(__file__).parents[1] / "golden" / "models" / "llama-f32"
NUM_LINES = int(os.environ.get("NANOVLLM_FUZZ", "5000")) // 4  # of each kind under each policy

CHAT = {"role": "user", "content": "Hello"}
SEEDS = {
    "columns": [
        {"id": "a", "prompt": "Hello, world", "sampling": {"temperature": 0.5, "stop": ["x"], "seed": 3}},
        {"id": 7, "prompt_token_ids": [5, 6, 7], "topic": {"a": [1, 2.5, None]}},
        {"messages": [{"role": "system", "content": "Be brief."}, CHAT], "tools": [{"type": "function"}]},
        {"prompt": "", "sampling": {"n": 2, "temperature": 1, "min_tokens": 1}},
    ],
    "batch": [
        {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {
            "messages": [CHAT, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}, CHAT], "n": 2,
            "temperature": 1, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": 1, "stop": ["a"], "logprobs": True,
            "top_logprobs": 2, "max_completion_tokens": 4, "tools": [{"type": "function"}], "tool_choice": "auto",
            "chat_template": "{{ messages[0].content }}{{ tools }}",
            "chat_template_kwargs": {"x": 1}, "stream": False, "user": "u", "metadata": {"k": "v"}}},
        {"custom_id": "d", "method": "POST", "url": "/v1/completions", "body": {
            "model": "m", "prompt": "Hello", "max_tokens": 3, "logprobs": 1, "frequency_penalty": 1,
            "stop_token_ids": [2], "repetition_penalty": 1.2, "presence_penalty": -1,
            "ignore_eos": True, "min_tokens": 1, "echo": False}},
        {"custom_id": "e", "method": "POST", "url": "/v1/chat/completions", "body": {
            "messages": [CHAT], "continue_final_message": True, "add_generation_prompt": False,
            "chat_template": "{{ x }}{{ documents }}{{ messages[0].content }}", "documents": [{"a": "b"}],
            "response_format": {"type": "text"}, "max_tokens": 2}},
    ],
}  # fmt: skip
VALUES = [
    None, True, False, 0, -1, 1, 2**70, -(2**63), 1e308, 0.5, "", " ", "a", "\ud800", "\u2028", "x" * 300, [], [[]],
    [None], [-1], [2**40], [1.5], ["a", "\udfff"], {}, {"a": {}}, {"role": "user"}, [{"role": "user", "content": 3}],
    "user",
    "{{ x", "{% for i in range(10**9) %}a{% endfor %}", "{{ messages[0].__class__ }}", "/v1/completions", "POST", "7",
]  # fmt: skip
NEW_KEYS = ["n", "echo", "seed", "prompt", "messages", "sampling", "id", "self"]
SNIPPETS = [b"NaN", b"Infinity", b"1e999", b"\xff\xfe", b"\x00", b"\\ud83d", b"{", b"}", b"[", b'"', b",", b"\r",
            b"\xe2\x80\xa8", b"[" * 300, b"9" * 5000, b'"a":1,"a":2,', b"\\", b"\xc3", b"\xef\xbb\xbf"]  # fmt: skip


def mutated_lines(seeds, rng):
    for number in range(NUM_LINES):
        value = json.loads(json.dumps(rng.choice(seeds)))
        name = "custom_id" if "custom_id" in value else "id"
        value[name] = f"{number}"
        for _ in range(rng.choice([0, 1, 1, 2])):
            value = mutate_value(value, rng, VALUES, NEW_KEYS)
        line = json.dumps(value, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")
        for _ in range(rng.choice([0, 0, 1, 2])):
            line = mutate_text(line, rng, SNIPPETS)
        yield line


@pytest.fixture(scope="module")
def llm():
    return LLM(MODEL, dtype="float32", max_model_len=64)


@pytest.mark.parametrize("kind", SEEDS)
@pytest.mark.parametrize("policy", ["error", "truncate_left"])
def test_each_line_is_accounted_for(kind, policy, llm, tmp_path):
    data = b"\n".join(mutated_lines(SEEDS[kind], random.Random(f"{kind} {policy}")))
    num_rows = sum(bool(line.strip(b" \t\r\n")) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
    assert num_rows > 0.9 * NUM_LINES
    (tmp_path / "in.jsonl").write_bytes(data)
    (tmp_path / "job.yaml").write_text(
        f"model: {MODEL}\ninput: in.jsonl\noutput: run\nprogress: none\non_overlong: {policy}\n"
        f"sampling: {{max_tokens: 2}}\n{'input_format: openai_batch' if kind == 'batch' else ''}\n"
    )
    code = run_job(load_job(tmp_path / "job.yaml"), lambda job: llm, io.StringIO())
    assert code == 3
    assert "Traceback" not in (tmp_path / "run" / "run.log").read_text("utf-8")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    counts = manifest["counts"]
    assert counts["rows"] == num_rows == counts["ok"] + counts["errors"] + counts["skipped"]
    assert sum(manifest["errors_by_code"].values()) == counts["errors"]
    assert min(counts["ok"], counts["errors"]) > 0.1 * num_rows
    lines = (tmp_path / "run" / "results.jsonl").read_text("utf-8").split("\n")
    assert lines.pop() == ""
    assert len(lines) == counts["lines"]
    values = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    if kind == "batch":
        assert len(values) == num_rows
        good = [value for value in values if value["response"] and value["response"]["status_code"] == 200]
        assert len(good) == counts["ok"]
        assert len({value["id"] for value in values}) == num_rows
    else:
        indices = [value["index"] for value in values]
        assert indices == sorted(indices)
        assert set(indices) == set(range(num_rows))
