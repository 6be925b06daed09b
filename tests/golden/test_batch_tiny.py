"""An OpenAI batch through the real engine, on a tiny checkpoint with recorded greedy ids.

Oracles: expected.json beside the checkpoint, and the types of the `openai` package.
"""

import json
from pathlib import Path

import pytest

from jobs.cli import main
from nanovllm import Tokenizer

MODEL = Path(__file__).parent / "models" / "llama-f32"
NUM_TOKENS = 12
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def line(custom_id, url, **body):
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


@pytest.fixture(scope="module")
def expected():
    return json.loads((MODEL / "expected.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def answered(tmp_path_factory, expected):
    """Answer a batch; gives (exit code, lines by custom_id, bytes of the file, its folder)."""
    folder = tmp_path_factory.mktemp("batch")
    greedy = {"max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
    rows = [
        line(f"p{i}", COMPLETIONS, prompt=prompt["ids"], logprobs=1, **greedy)
        for i, prompt in enumerate(expected["prompts"])
    ]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    rows += [
        line(
            "chat", CHAT, messages=messages, model="some/model", max_completion_tokens=5, logprobs=True, top_logprobs=2
        ),
        line("several", CHAT, messages=messages, n=3, temperature=1, seed=7, max_tokens=6, stop=["zzz"]),
        line("bad", CHAT, messages=messages, stream=True),
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["run-batch", "-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"), "--model", str(MODEL)]
    code = main([*command, "--dtype", "float32", "--progress", "none", "--set", "limits.max_errors=1"])
    data = (folder / "out.jsonl").read_bytes()
    lines = [json.loads(one) for one in data.decode("utf-8").split("\n")[:-1]]
    assert [one["custom_id"] for one in lines] == [row["custom_id"] for row in rows]
    return code, {one["custom_id"]: one for one in lines}, data, folder


def test_every_line_is_a_success_for_openai_s_readers(answered):
    chat_types, types = pytest.importorskip("openai.types.chat"), pytest.importorskip("openai.types")
    code, lines, _, _ = answered
    assert code == 0
    for custom_id, one in lines.items():
        is_success = one["response"]["status_code"] == 200 and one["error"] is None
        assert is_success == (custom_id != "bad")
        if is_success:
            kind = chat_types.ChatCompletion if custom_id in ("chat", "several") else types.Completion
            body = one["response"]["body"]
            parsed = kind.model_validate(body)
            assert kind.model_validate_json(parsed.model_dump_json()) == parsed
            assert parsed.usage.total_tokens == parsed.usage.prompt_tokens + parsed.usage.completion_tokens


def test_texts_and_counts_are_those_of_the_recorded_ids(answered, expected):
    tokenizer = Tokenizer.from_pretrained(MODEL)
    for i, prompt in enumerate(expected["prompts"]):
        body = answered[1][f"p{i}"]["response"]["body"]
        text = tokenizer.decode(prompt["ids"] + prompt["greedy_ids"][:NUM_TOKENS])
        assert body["choices"][0]["text"] == text.removeprefix(tokenizer.decode(prompt["ids"]))
        assert body["usage"]["prompt_tokens"] == len(prompt["ids"])
        assert body["usage"]["completion_tokens"] == NUM_TOKENS


def test_the_chosen_token_is_the_best_one_when_greedy(answered):
    scores = answered[1]["p0"]["response"]["body"]["choices"][0]["logprobs"]
    assert len(scores["tokens"]) == len(scores["token_logprobs"]) == len(scores["text_offset"]) == NUM_TOKENS
    for number, best in zip(scores["token_logprobs"], scores["top_logprobs"], strict=True):
        assert best == dict.fromkeys(best, number)
        assert len(best) == 1
        assert number <= 0


def test_log_probabilities_of_a_chat_have_the_best_tokens(answered):
    choice = answered[1]["chat"]["response"]["body"]["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == answered[1]["chat"]["response"]["body"]["usage"]["completion_tokens"]
    for token in content:
        first, second = token["top_logprobs"]
        assert first["logprob"] >= second["logprob"]
        assert bytes(token["bytes"]).decode("utf-8") == token["token"]


def test_choices_are_different_draws(answered):
    body = answered[1]["several"]["response"]["body"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in body["choices"]}) == 3


def test_a_finished_batch_is_not_done_again(answered, capsys):
    _, _, data, folder = answered
    command = ["run-batch", "-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"), "--model", str(MODEL)]
    command += ["--dtype", "float32", "--progress", "none", "--set", "limits.max_errors=1"]
    manifest = (folder / "out.jsonl.run" / "manifest.json").read_bytes()
    assert main(command) == 0
    assert (folder / "out.jsonl").read_bytes() == data
    assert (folder / "out.jsonl.run" / "manifest.json").read_bytes() == manifest
    (folder / "out.jsonl").unlink()
    assert main(command) == 0
    assert (folder / "out.jsonl").read_bytes() == data
    assert main([*command, "--restart"]) == 0
    assert (folder / "out.jsonl").read_bytes() == data


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text(json.dumps(line("a", COMPLETIONS, prompt="hi", max_tokens=1)) + "\n")
    (tmp_path / "out.jsonl").write_text("mine")
    command = ["run-batch", "-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--model", str(MODEL)]
    assert main(command) == 2
    assert "out.jsonl exists, and no run beside it" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == "mine"
    assert main([*command, "--restart"]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["custom_id"] == "a"


def test_results_of_a_job_have_log_probabilities_on_request(tmp_path, expected):
    prompt = expected["prompts"][0]
    row = {"prompt_token_ids": prompt["ids"], "sampling": {"logprobs": 2, "prompt_logprobs": 1}}
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    (tmp_path / "job.yaml").write_text(
        f"model: {MODEL}\ninput: in.jsonl\noutput: out\nprogress: none\nengine: {{dtype: float32}}\n"
        "sampling: {max_tokens: 4, temperature: 0, ignore_eos: true}\n"
    )
    assert main(["run", str(tmp_path / "job.yaml")]) == 0
    (one,) = [json.loads(text) for text in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert one["token_ids"] == prompt["greedy_ids"][:4]
    assert [score["token_id"] for score in one["logprobs"]] == prompt["greedy_ids"][:4]
    assert [score["top"][0]["token_id"] for score in one["logprobs"]] == prompt["greedy_ids"][:4]
    assert all(len(score["top"]) == 2 and score["rank"] == 1 for score in one["logprobs"])
    assert one["prompt_logprobs"][0] is None
    assert [score["token_id"] for score in one["prompt_logprobs"][1:]] == prompt["ids"][1:]


def test_a_bias_that_cannot_be_is_an_error_of_its_line_alone(tmp_path):
    biases = [{"999999": -100}, {"-1": 5}, {"abc": 5}, {"5": "x"}, {"5": 1e9}, {"5": -100}]
    good = [line(f"good{i}", COMPLETIONS, prompt="Hello there", temperature=1, seed=i, max_tokens=6) for i in range(3)]
    bad = [
        line(f"bias{i}", COMPLETIONS, prompt="Hello there", temperature=0, max_tokens=3, logit_bias=bias)
        for i, bias in enumerate(biases)
    ]

    def answer(name, rows):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        flags = ["-i", str(tmp_path / f"{name}.jsonl"), "-o", str(tmp_path / f"{name}.out"), "--model", str(MODEL)]
        code = main(["run-batch", *flags, "--dtype", "float32", "--progress", "none"])
        lines = [json.loads(text) for text in (tmp_path / f"{name}.out").read_text("utf-8").split("\n")[:-1]]
        return code, {one["custom_id"]: one for one in lines}

    code, mixed = answer("mixed", [good[0], *bad[:3], good[1], *bad[3:], good[2]])
    assert code == 3
    assert len(mixed) == 9
    for i in range(4):
        assert mixed[f"bias{i}"]["response"]["status_code"] == 400
        assert "logit_bias" in mixed[f"bias{i}"]["response"]["body"]["error"]["message"]
    assert [mixed[f"bias{i}"]["response"]["status_code"] for i in (4, 5)] == [200, 200]
    code, alone = answer("alone", good)
    assert code == 0
    assert alone == {name: one for name, one in mixed.items() if name.startswith("good")}


def test_tools_and_documents_that_the_template_never_reads_are_refused(tmp_path):
    asked = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 3}
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}]}
    documents = {"documents": [{"title": "t", "text": "x"}]}
    shown = {"chat_template": "{{ tools }}{{ documents }}{{ messages[0].content }}"}
    rows = [
        line("plain", CHAT, **asked),
        line("tools", CHAT, **asked, **tools),
        line("documents", CHAT, **asked, **documents),
        line("none chosen", CHAT, **asked, **tools, tool_choice="none"),
        line("empty", CHAT, **asked, tools=[], documents=[]),
        line("both shown", CHAT, **asked, **tools, **documents, **shown),
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--model", str(MODEL)]
    assert main(["run-batch", *flags, "--dtype", "float32", "--progress", "none"]) == 3
    lines = [json.loads(text) for text in (tmp_path / "out.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert [one["response"]["status_code"] for one in lines] == [200, 400, 400, 200, 200, 200]
    for one, name in ((lines[1], "tools"), (lines[2], "documents")):
        cause = one["response"]["body"]["error"]
        assert (cause["param"], cause["code"]) == (name, "template_error")
        assert f"{name}: the chat template makes no use of them" in cause["message"]
    prompts = [one["response"]["body"].get("usage", {}).get("prompt_tokens") for one in lines]
    assert prompts[0] == prompts[3] == prompts[4] < prompts[5]
