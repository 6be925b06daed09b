"""Lines of an OpenAI batch are answered by lines that OpenAI's own types and readers take."""

import json

import pytest
from batch_lines import COMPLETIONS, chat, completion, line, run_lines
from fake_llm import FakeLLM, FakeTokenizer

from jobs.inputs import RowSource
from jobs.job_file import PromptSettings
from jobs.openai_batch.calls import CallReader
from jobs.prompts import PromptBuilder
from jobs.readers import RawRow
from jobs.rows import RowParser


class RecordingTokenizer(FakeTokenizer):
    """Renders like the fake one and remembers what else it was given."""

    def encode_chat(self, messages, **options):
        self.options = options
        return super().encode_chat(messages, tools=options.get("tools"))


def parse(value, **settings):
    """Parse one line; gives (row, what the chat template was given)."""
    tokenizer = RecordingTokenizer()
    builder = PromptBuilder(PromptSettings())
    builder.use_tokenizer(tokenizer)
    row = RowParser(builder, CallReader(**settings)).parse(0, RawRow("f", 1, value, is_batch=True))
    assert row.error is None, row.error
    return row, getattr(tokenizer, "options", None)


def test_a_chat_is_answered_in_full(tmp_path):
    types = pytest.importorskip("openai.types.chat")
    code, lines, manifest, _ = run_lines(tmp_path, [chat("q-1", "abc", model="gpt-x", max_tokens=3)])
    assert code == 0
    (one,) = lines
    body = one["response"]["body"]
    assert sorted(one) == ["custom_id", "error", "id", "response"]
    assert (one["custom_id"], one["error"]) == ("q-1", None)
    assert one["response"]["status_code"] == 200
    assert one["response"]["request_id"].startswith("req_") and one["id"].startswith("batch_req_")
    assert (body["object"], body["model"], body["created"]) == ("chat.completion", "gpt-x", 0)
    # the fake model's prompt is BOS and one id for each character of "<user>abc"; it answers the last three, reversed
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "cba", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    assert body["usage"] == {**usage, "prompt_tokens_details": {"cached_tokens": 0}}
    parsed = types.ChatCompletion.model_validate(body)
    assert parsed.choices[0].message.content == "cba"
    assert (manifest["counts"]["rows"], manifest["counts"]["ok"], manifest["counts"]["lines"]) == (1, 1, 1)


def test_a_completion_is_answered_in_full(tmp_path):
    types = pytest.importorskip("openai.types")
    code, lines, _, _ = run_lines(tmp_path, [completion("q", "xyz", n=2, temperature=1)])
    assert code == 0
    body = lines[0]["response"]["body"]
    assert (body["object"], body["model"]) == ("text_completion", "fake")
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "zyx"), (1, "zyx")]
    usage = {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}
    assert body["usage"] == {**usage, "prompt_tokens_details": {"cached_tokens": 0}}
    assert types.Completion.model_validate(body).choices[1].text == "zyx"


def test_the_usage_says_what_a_call_shares_with_the_one_before_it(tmp_path):
    types = pytest.importorskip("openai.types")
    # a block of the fake model is 4 ids; the prompts are BOS and one id for each character
    rows = [completion("a", "abcdefgh"), completion("b", "abcdefgh"), chat("c", "abc"), chat("d", "abx")]
    _, lines, _, _ = run_lines(tmp_path, rows)
    bodies = [one["response"]["body"] for one in lines]
    cached = [body["usage"]["prompt_tokens_details"]["cached_tokens"] for body in bodies]
    assert cached == [0, 8, 0, 8]
    assert types.Completion.model_validate(bodies[1]).usage.prompt_tokens_details.cached_tokens == 8
    assert types.chat.ChatCompletion.model_validate(bodies[3]).usage.prompt_tokens_details.cached_tokens == 8


def test_a_kept_answer_counts_what_it_shares_now(tmp_path):
    rows = [completion("a", "abcdefgh"), completion("b", "abcdefgh")]
    run_lines(tmp_path, rows)
    _, lines, manifest, llm = run_lines(tmp_path, rows[1:])
    assert (llm.seen, manifest["resumed"]["kept"]) == ([], 1)
    assert lines[0]["response"]["body"]["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    assert run_lines(fresh, rows[1:])[1] == lines


def test_a_job_may_ask_for_ids_in_the_place_of_its_calls(tmp_path):
    rows = [completion("a", "xyz"), completion("b", "xyz", return_token_ids=False), chat("c", "xyz")]
    _, lines, _, _ = run_lines(tmp_path, rows, "return_token_ids: true\n")
    first, second, third = (one["response"]["body"] for one in lines)
    assert first["choices"][0]["prompt_token_ids"] == [1, 120, 121, 122]
    assert first["choices"][0]["token_ids"] == [122, 121, 120]
    assert not {"token_ids", "prompt_token_ids"} & set(second["choices"][0])
    assert third["prompt_token_ids"] == [1, *map(ord, "<user>xyz")] and third["choices"][0]["token_ids"]


def test_the_second_run_gives_the_same_bytes(tmp_path):
    rows = [chat("a"), completion("b"), chat("c", stream=True), "{"]
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    results = []
    for folder in (first, second):
        run_lines(folder, rows)
        results.append((folder / "run" / "results.jsonl").read_text().replace(str(folder), ""))
    assert results[0] == results[1]


def test_ids_of_a_file_are_all_different(tmp_path):
    rows = [chat("a"), chat("a"), chat("a"), chat("b"), completion("c"), "{", "{"]
    _, lines, _, _ = run_lines(tmp_path, rows)
    assert len({one["id"] for one in lines}) == len(rows)


@pytest.mark.parametrize(
    ("body", "sampling"),
    [
        ({}, {"max_tokens": None}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 5}, {"max_tokens": 5}),
        ({"temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1}, {"temperature": 0.5, "top_p": 0.9, "top_k": 3}),
        ({"stop": "x", "seed": 4, "n": 3}, {"stop": "x", "seed": 4, "n": 3}),
        ({"presence_penalty": 1, "frequency_penalty": -1}, {"presence_penalty": 1, "frequency_penalty": -1}),
        ({"repetition_penalty": 1.1, "stop_token_ids": [3]}, {"repetition_penalty": 1.1, "stop_token_ids": [3]}),
        ({"ignore_eos": True, "min_tokens": 1}, {"ignore_eos": True, "min_tokens": 1}),
        ({"skip_special_tokens": False, "include_stop_str_in_output": True}, {"skip_special_tokens": False}),
        ({"temperature": None, "stop": None, "logprobs": None}, {}),
        ({"thinking_token_budget": 9}, {"thinking_token_budget": 9}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
        ({"logprobs": False, "top_logprobs": 0}, {}),
        ({"user": "me", "metadata": {"a": "\ud800"}, "stream": False, "store": False, "tool_choice": "auto"}, {}),
        ({"response_format": {"type": "text"}, "parallel_tool_calls": True, "service_tier": "auto"}, {}),
    ],
)
def test_fields_of_a_chat_become_sampling_settings(body, sampling):
    row, _ = parse(chat(**body))
    expected = {"max_tokens": None, **sampling}
    assert {name: row.sampling[name] for name in expected} == expected
    assert set(row.sampling) - set(body) <= {"max_tokens"}


def test_a_completion_has_the_endpoint_s_own_length():
    assert parse(completion())[0].sampling == {}
    assert parse(completion(max_tokens=7, logprobs=2))[0].sampling == {"max_tokens": 7, "logprobs": 2}


def test_a_length_of_the_job_holds_for_calls_that_bring_none():
    assert parse(chat(), sampling={"max_tokens": 9})[0].sampling == {}


def test_sampling_beside_the_body_goes_under_it():
    row, _ = parse({**chat(temperature=0.5), "sampling": {"temperature": 1, "top_k": 4}})
    assert row.sampling == {"temperature": 0.5, "top_k": 4, "max_tokens": None}


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({}, {"add_generation_prompt": True, "tools": None}),
        ({"tools": [{"type": "function"}]}, {"tools": [{"type": "function"}]}),
        ({"tools": [{"type": "function"}], "tool_choice": "none"}, {"tools": None}),
        ({"tools": []}, {"tools": None}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        ({"continue_final_message": True}, {"continue_final_message": True, "add_generation_prompt": False}),
        (
            {"chat_template": "{{ messages }}", "documents": [{}]},
            {"chat_template": "{{ messages }}", "documents": [{}]},
        ),
    ],
)
def test_fields_of_a_chat_reach_its_template(body, options):
    _, given = parse(chat(**body))
    assert {name: given[name] for name in options} == options


@pytest.mark.parametrize(
    ("prompt", "value"),
    [
        ("hi", "hi"),
        ("", ""),
        (["hi"], "hi"),
        ([5, 6], {"prompt_token_ids": [5, 6]}),
        ([[5, 6]], {"prompt_token_ids": [5, 6]}),
    ],
)
def test_forms_of_a_prompt(prompt, value):
    row, _ = parse(completion(prompt=prompt))
    assert (row.prompt.value, row.prompt.is_chat) == (value, False)


def test_the_model_s_name_is_given_back(tmp_path):
    assert parse(chat(model="any/name"), model="own")[0].call.model == "any/name"
    assert parse(chat(), model="own")[0].call.model == "own"
    assert parse(chat(), model="own", served_model_names=("first", "second"))[0].call.model == "first"
    assert parse(chat(model="second"), model="own", served_model_names=("first", "second"))[0].call.model == "second"


def test_the_first_readable_row_says_what_a_file_is(tmp_path):
    def marks(name, text):
        (tmp_path / name).write_text(text)
        return [row.is_batch for row in RowSource([str(tmp_path / name)]).rows()]

    batch = json.dumps(chat())
    assert marks("a.jsonl", f"{{\n\n[]\n{batch}\n{{\n") == [True] * 4
    assert marks("b.jsonl", f'{{\n{{"prompt": "x"}}\n{batch}\n') == [False] * 3
    assert marks("c.jsonl", "{\n{\n") == [False] * 2
    assert marks("d.jsonl", "") == []


def test_a_file_of_a_job_may_be_a_batch_beside_others(tmp_path):
    (tmp_path / "more.jsonl").write_text('{"prompt": "plain"}\n')
    _, lines, _, _ = run_lines(tmp_path, [chat("a"), "{"], "on_overlong: skip\n")
    assert lines[0]["response"]["status_code"] == 200
    assert lines[1]["response"] is None
    (tmp_path / "other").mkdir()
    _, lines, _, _ = run_lines(tmp_path / "other", [{"prompt": "plain"}, chat("a"), "{"])
    assert lines[0]["text"] == "nia"
    assert lines[1]["custom_id"] == "a"
    assert lines[2]["finish_reason"] == "error"


def test_a_template_of_the_job_makes_lines_plain_columns(tmp_path):
    _, lines, _, _ = run_lines(tmp_path, [chat("a", "abc")], 'prompt: {template: "{{ custom_id }}xy", chat: false}\n')
    assert lines[0]["text"] == "yxa"


def test_a_cut_prompt_leaves_a_trace(tmp_path):
    text = "on_overlong: truncate_left\nsampling: {max_tokens: 2}\n"
    _, lines, _, llm = run_lines(tmp_path, [completion("a", "0123456789")], text, FakeLLM(max_model_len=8))
    assert lines[0]["response"]["body"]["num_cut_tokens"] == 5
    assert llm.seen[0][1] == "56789"
    assert line("a", COMPLETIONS, {})["method"] == "POST"
