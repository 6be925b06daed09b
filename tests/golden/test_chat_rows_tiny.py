"""Chats that a template refuses, or that are too long, through `nanovllm run` on a tiny checkpoint.

Oracle: prompts rendered by hand from the checkpoint's template, counted by its tokenizer.
"""

import json
from pathlib import Path

import pytest

from jobs.cli import main
from nanovllm import Tokenizer

MODEL = Path(__file__).parent / "models" / "llama-newstyle"
MAX_MODEL_LEN = 64
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


def run(folder, rows, text):
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "job.yaml").write_text(
        f"model: {MODEL}\ninput: in.jsonl\noutput: out\nprogress: none\n"
        f"sampling: {{max_tokens: 4, temperature: 0, ignore_eos: true}}\n{text}"
    )
    code = main(["run", str(folder / "job.yaml")])
    lines = (folder / "out" / "results.jsonl").read_text("utf-8").split("\n")[:-1]
    return code, [json.loads(line) for line in lines]


def messages(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_a_template_s_refusal_is_quoted_in_its_row_alone(tmp_path):
    (tmp_path / "alternating.jinja").write_text(ALTERNATING)
    rows = [
        messages(("user", "one")),
        messages(("system", "be brief"), ("user", "two")),
        messages(("user", "three"), ("user", "four")),
        {"messages": []},
        messages(("user", "five")),
    ]
    code, lines = run(tmp_path, rows, f"engine: {{chat_template: {tmp_path}/alternating.jinja}}\n")
    assert code == 3
    assert [line["finish_reason"] for line in lines] == ["length", "error", "error", "error", "length"]
    for line in lines[1:3]:
        assert line["error"]["code"] == "template_error"
        assert "Conversation roles must alternate user/assistant" in line["error"]["message"]
    assert lines[3]["error"]["code"] == "empty_messages"


def rendered(content):
    return (
        "<|endoftext|><|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("policy", ["error", "skip", "truncate_left", "truncate_right", "truncate_middle"])
def test_an_overlong_chat_between_two_short_ones(policy, tmp_path):
    tokenizer = Tokenizer.from_pretrained(MODEL)
    content = " ".join(map(str, range(10, 90)))
    rows = [messages(("system", "Be brief."), ("user", text)) for text in ("hi", content, "ho")]
    text = f"on_overlong: {policy}\nengine: {{max_model_len: {MAX_MODEL_LEN}}}\n"
    code, lines = run(tmp_path, rows, text)
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert [lines[0]["finish_reason"], lines[2]["finish_reason"]] == ["length", "length"]
    assert "num_cut_tokens" not in lines[0]
    num_whole = len(tokenizer.encode(rendered(content)))
    middle = lines[1]
    if policy in ("error", "skip"):
        assert code == (3 if policy == "error" else 0)
        assert middle["finish_reason"] == ("error" if policy == "error" else "skipped")
        assert middle["error"]["code"] == "prompt_too_long"
        assert f"{num_whole} tokens" in middle["error"]["message"]
        assert str(MAX_MODEL_LEN) in middle["error"]["message"]
        return
    assert code == 0
    num_kept = middle["usage"]["prompt_tokens"]
    assert middle["num_cut_tokens"] == num_whole - num_kept
    # room for the completion is left, and what is cut away is no more than needed
    assert num_kept <= MAX_MODEL_LEN - 4
    assert num_kept >= MAX_MODEL_LEN - 4 - 2
    assert middle["usage"]["completion_tokens"] == 4
    assert middle["row"]["messages"][1]["content"] == content


@pytest.mark.parametrize(
    ("policy", "start", "end"),
    [("truncate_left", "", "88 89"), ("truncate_right", "10 11", ""), ("truncate_middle", "10", "89")],
)
def test_the_frame_of_a_chat_that_is_cut_stays_whole(policy, start, end, tmp_path, capsys):
    content = " ".join(map(str, range(10, 90)))
    (tmp_path / "in.jsonl").write_text(json.dumps(messages(("system", "Be brief."), ("user", content))))
    (tmp_path / "job.yaml").write_text(
        f"model: {MODEL}\ninput: in.jsonl\non_overlong: {policy}\nengine: {{max_model_len: {MAX_MODEL_LEN}}}\n"
    )
    assert main(["check", str(tmp_path / "job.yaml"), "--row", "0"]) == 0
    shown = capsys.readouterr().out
    frame_start, frame_end = rendered("|").split("|im_start|>user\n|")[0], "<|im_end|>\n<|im_start|>assistant\n"
    prompt = shown[shown.index(frame_start) : shown.index("\nids: ")]
    head = rendered("CUT").split("CUT")[0]
    assert prompt.startswith(head + start)
    assert prompt.endswith(end + frame_end)
    assert len(prompt) < len(rendered(content))
