"""A line of a batch that cannot be served is one error line that names what is wrong; the others are not affected."""

import pytest
from batch_lines import CHAT, COMPLETIONS, chat, completion, line, run_lines
from fake_llm import FakeLLM

from nanovllm import RequestError


def refuse(tmp_path, row, text="", llm=None):
    """Run a bad line between two good ones; gives its error line."""
    code, lines, manifest, _ = run_lines(tmp_path, [chat("before"), row, chat("after")], text, llm)
    assert code == 3
    assert [one["custom_id"] for one in lines if one["error"] is None and one["response"]["status_code"] == 200] == [
        "before", "after",
    ]  # fmt: skip
    counts = manifest["counts"]
    assert (counts["rows"], counts["ok"], counts["errors"], counts["skipped"]) == (3, 2, 1, 0)
    return lines[1]


@pytest.mark.parametrize(
    ("row", "param", "code", "message"),
    [
        (chat(stream=True), "stream", "unsupported_field", "body.stream is true, which is not served: a batch has no"),
        (completion(echo=True), "echo", "unsupported_field", "body.echo is true"),
        (completion(suffix="x"), "suffix", "unsupported_field", 'body.suffix is "x"'),
        (completion(best_of=2), "best_of", "unsupported_field", "body.best_of is 2, which is not served: ask for n"),
        (
            chat(thinking_token_budget=-2),
            "thinking_token_budget",
            "invalid_sampling",
            "body.thinking_token_budget is -2, expected an integer of at least -1",
        ),
        (chat(logits_processors=["a"]), "logits_processors", "unsupported_field", "no code of yours runs here"),
        (chat(guided_json={}), "guided_json", "unsupported_field", "use structured_outputs: {json: ...}"),
        (chat(num_beams=4), "num_beams", "unsupported_field", "only LLM.beam_search has it"),
        (completion(best_of=True), "best_of", "unsupported_field", "body.best_of is true"),
        (chat(reasoning_effort="low"), "reasoning_effort", "unsupported_field", 'body.reasoning_effort is "low"'),
        (chat(modalities=["audio"]), "modalities", "unsupported_field", "body.modalities is"),
        (chat(response_format={"type": "xml"}), "response_format", "unsupported_field", "body.response_format is"),
        (chat(temprature=1), "temprature", "unsupported_field", "did you mean temperature?"),
        (chat(prompt="x"), "prompt", "unsupported_field", "this endpoint takes messages"),
        (completion(messages=[]), "messages", "unsupported_field", "this endpoint takes prompt"),
        (completion(max_completion_tokens=4), "max_completion_tokens", "unsupported_field", "use max_tokens"),
        (chat(tool_choice="required"), "tool_choice", "unsupported_field", "no call can be forced"),
        (chat(functions=[]), "functions", "unsupported_field", "use tools"),
        (completion(prompt=["a", "b"]), "prompt", "unsupported_field", "holds 2 prompts: write one on each line"),
        (chat(top_p=3), "top_p", "invalid_sampling", "body.top_p is 3, expected a number above 0 and at most 1"),
        (chat(max_tokens="8"), "max_tokens", "invalid_sampling", "body.max_tokens is '8', expected an integer"),
        (
            chat(max_tokens=0),
            "max_tokens",
            "invalid_sampling",
            "body.max_tokens is 0, expected an integer of at least 1",
        ),
        (chat(max_tokens=1, max_completion_tokens=2), "max_completion_tokens", "invalid_sampling", "mean the same"),
        (
            chat(max_completion_tokens="8"),
            "max_completion_tokens",
            "invalid_sampling",
            "body.max_completion_tokens is '8'",
        ),
        (
            chat(logprobs=True, top_logprobs="2"),
            "top_logprobs",
            "invalid_sampling",
            "body.top_logprobs is '2', expected",
        ),
        (
            chat(logprobs=True, top_logprobs=-1),
            "top_logprobs",
            "invalid_sampling",
            "body.top_logprobs is -1, expected an integer of at least 0",
        ),
        (completion(logprobs=-1), "logprobs", "invalid_sampling", "body.logprobs is -1, expected an integer of at"),
        (chat(prompt_logprobs=-1), "prompt_logprobs", "invalid_sampling", "body.prompt_logprobs is -1, expected"),
        (chat(logit_bias={"abc": 5}), "logit_bias", "invalid_sampling", "body.logit_bias"),
        (chat(top_logprobs=2), "top_logprobs", "invalid_sampling", "needs body.logprobs: true"),
        (chat(logprobs=3), "logprobs", "invalid_sampling", "body.logprobs is 3, expected true or false"),
        (completion(logprobs=True), "logprobs", "invalid_sampling", "body.logprobs is True, expected an integer"),
        (
            chat(n=2, temperature=0),
            None,
            "invalid_sampling",
            "body: n is 2, expected 1 because temperature 0 is greedy",
        ),
        (chat(min_tokens=9, max_tokens=3), None, "invalid_sampling", "body: min_tokens is 9"),
        (chat(stop=["a\ud800"]), None, "invalid_text", "'body.stop[0]' holds the lone surrogate \\ud800 at position 1"),
        (chat(content="\ud800"), None, "invalid_text", "'body.messages[0].content' holds the lone surrogate"),
        (completion(prompt="a\udc00"), None, "invalid_text", "'body.prompt' holds the lone surrogate"),
        (line("a", CHAT, {}), "messages", "no_prompt", "body.messages is missing"),
        (line("a", CHAT, {"messages": "hi"}), "messages", "invalid_prompt", "body.messages must be a list"),
        (line("a", COMPLETIONS, {}), "prompt", "no_prompt", "body.prompt is missing"),
        (line("a", COMPLETIONS, {"prompt": None}), "prompt", "no_prompt", "body.prompt is missing"),
        (completion(prompt=[]), "prompt", "empty_prompt", "body.prompt is an empty list"),
        (completion(prompt=[1.5]), "prompt", "invalid_prompt", "text or a list of token ids"),
        (completion(prompt={"a": 1}), "prompt", "invalid_prompt", "text or a list of token ids"),
        (chat(model=7), "model", "invalid_model", "body.model must be text"),
        (chat(chat_template=7), "chat_template", "invalid_prompt", "body.chat_template must be text"),
        (chat(chat_template_kwargs=[1]), "chat_template_kwargs", "invalid_prompt", "must be an object"),
        (chat(chat_template_kwargs={"self": 1}), "chat_template_kwargs", "invalid_prompt", "holds 'self'"),
        (chat(add_generation_prompt=1), "add_generation_prompt", "invalid_prompt", "is 1, expected true or false"),
        (line("a", CHAT, {"messages": [{"role": "forbidden"}]}), "messages", "template_error", "roles must alternate"),
        (line("a", "/v1/embeddings", {}), None, "unsupported_url", "'url' is \"/v1/embeddings\", expected /v1/chat/"),
        (line("a", 7, {}), None, "unsupported_url", "'url' is 7"),
        (line("a", ["x"], {}), None, "unsupported_url", "'url' is [\"x\"]"),
    ],
)
def test_a_request_that_is_refused_has_a_response_with_the_reason(tmp_path, row, param, code, message):
    one = refuse(tmp_path, row)
    assert one["error"] is None
    assert one["custom_id"] == "a"
    assert one["response"]["status_code"] == 400
    cause = one["response"]["body"]["error"]
    assert (cause["type"], cause["param"], cause["code"]) == ("invalid_request_error", param, code)
    assert message in cause["message"]
    assert "in.jsonl, line 2" in cause["message"]


@pytest.mark.parametrize(
    ("row", "custom_id", "code", "message"),
    [
        ('{"custom_id": "a", ', None, "invalid_row", "in.jsonl, line 2 is not JSON"),
        ('{"custom_id": "a", "body": {"x": NaN}}', "a", "invalid_row", "holds NaN under the key 'x'"),
        ('{"custom_id": "a", "url": 1, "url": 2}', "a", "invalid_row", "gives the key 'url' twice"),
        ("[1]", None, "invalid_row", "is not an object"),
        ({**chat(), "method": "GET"}, "a", "invalid_batch_line", "'method' is \"GET\", expected 'POST'"),
        ({"custom_id": "a", "method": "POST", "url": CHAT}, "a", "invalid_batch_line", "'body' is missing"),
        ({"custom_id": "a", "body": {}}, "a", "invalid_batch_line", "'method' is missing"),
        (line("a", CHAT, [1]), "a", "invalid_batch_line", "'body' must be an object, found [1]"),
        (line("", CHAT, {}), "", "invalid_custom_id", "'custom_id' must be text, and not empty"),
        (line(None, CHAT, {}), None, "invalid_custom_id", "'custom_id' must be text"),
        (line(7, CHAT, {}), None, "invalid_custom_id", "'custom_id' must be text"),
        ({"method": "POST", "url": CHAT, "body": {}}, None, "invalid_custom_id", "'custom_id' must be text"),
        ({"prompt": "plain"}, None, "invalid_custom_id", "'custom_id' must be text"),
        (chat("before"), "before", "duplicate_id", "the custom_id 'before' was used before, at"),
    ],
)
def test_a_line_that_is_no_request_has_an_error_of_its_own(tmp_path, row, custom_id, code, message):
    one = refuse(tmp_path, row)
    assert (one["custom_id"], one["response"]) == (custom_id, None)
    assert one["error"]["code"] == code
    assert message in one["error"]["message"]


def test_a_bad_line_takes_no_id_from_a_good_one(tmp_path):
    _, lines, _, _ = run_lines(tmp_path, [chat("x"), "{", line(None, CHAT, {}), chat("1"), chat("2")])
    assert [one["response"] and one["response"]["status_code"] for one in lines] == [200, None, None, 200, 200]


def test_a_repeated_id_names_the_first_line(tmp_path):
    _, lines, _, _ = run_lines(tmp_path, [chat("a", "1"), chat("b", "2"), chat("a", "3")])
    assert lines[0]["response"]["body"]["choices"][0]["message"]["content"] == "1>r"
    assert lines[2]["error"]["message"].endswith("in.jsonl, line 1")


def test_an_overlong_prompt_is_refused(tmp_path):
    one = refuse(tmp_path, completion(prompt="x" * 40), llm=FakeLLM(max_model_len=20))
    assert one["response"]["body"]["error"]["code"] == "prompt_too_long"


def test_a_model_that_is_not_served_is_not_found(tmp_path):
    code, lines, _, _ = run_lines(tmp_path, [chat("a", model="x"), chat("b", model="y")], "served_model_name: y\n")
    assert code == 3
    assert lines[0]["response"]["status_code"] == 404
    assert lines[0]["response"]["body"]["error"]["message"].endswith("body.model is 'x', and this batch serves y")
    assert lines[1]["response"]["status_code"] == 200


def test_a_failure_of_the_model_is_a_server_error(tmp_path):
    class Broken(FakeLLM):
        def _answer(self, request):
            output = super()._answer(request)
            if request.request_id == "a":
                output.error = RequestError("invalid_logits", "not finite")
            return output

    one = refuse(tmp_path, chat(), llm=Broken())
    assert one["response"]["status_code"] == 500
    assert one["response"]["body"]["error"]["type"] == "server_error"


def test_all_files_of_run_batch_are_batches(tmp_path):
    _, lines, _, _ = run_lines(tmp_path, [{"prompt": "x"}, "{"], "input_format: openai_batch\n")
    assert [one["error"]["code"] for one in lines] == ["invalid_custom_id", "invalid_row"]
