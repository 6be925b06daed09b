"""Structured output in job files, rows, OpenAI-Batch lines and `generate`."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
from batch_lines import chat, completion, run_lines

from jobs.cli import main
from jobs.job_file import load_job, parse_set
from jobs.run import run_job
from nanovllm import LLM, ConfigError
from nanovllm.structured import _llguidance

pytest.importorskip("llguidance")

TINY = Path(__file__).parents[1] / "golden" / "models" / "llama-f32"
SCHEMA = {
    "type": "object",
    "properties": {"b": {"enum": [1, 2]}, "a": {"type": "boolean"}},
    "additionalProperties": False,
    "required": ["b", "a"],
}
AS_TEXT = json.dumps(SCHEMA, separators=(",", ":"))


@pytest.fixture
def load(tmp_path):
    """Load a job with this under `sampling: structured_outputs:`."""

    def read(structured, *sets):
        (tmp_path / "in.jsonl").write_text('{"prompt": "Hello"}\n')
        text = f"model: {TINY}\ninput: in.jsonl\noutput: run\nprogress: none\nsampling:\n  max_tokens: 60\n"
        if structured is not None:
            text += f"  structured_outputs: {structured}\n"
        (tmp_path / "job.yaml").write_text(text, "utf-8")
        return load_job(tmp_path / "job.yaml", [parse_set(one) for one in sets])

    return read


def run(job, rows):
    Path(job.inputs[0]).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    stderr = io.StringIO()
    llm = LLM(TINY, dtype="float32", threads=1, max_model_len=200, max_num_seqs=16)
    code = run_job(job, lambda job: llm, stderr)
    lines = [json.loads(one) for one in (job.output / "results.jsonl").read_text("utf-8").splitlines()]
    return code, lines, stderr.getvalue()


# ---- job files


def test_a_schema_stands_in_the_job_file_or_in_one_beside_it(load, tmp_path, monkeypatch):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA, indent=2), "utf-8-sig")
    expected = {"json": AS_TEXT}
    assert load(f"{{json: {json.dumps(SCHEMA)}}}").sampling["structured_outputs"] == expected
    assert load("{json_file: schema.json}").sampling["structured_outputs"] == expected
    monkeypatch.setenv("SCHEMAS", str(tmp_path))
    assert load('{json_file: "${SCHEMAS}/schema.json"}').sampling["structured_outputs"] == expected
    monkeypatch.chdir(tmp_path)
    job = load(None, "sampling.structured_outputs.json_file=schema.json")
    assert job.sampling["structured_outputs"] == expected
    assert load("{regex: a}", "sampling.structured_outputs=null").sampling["structured_outputs"] is None


@pytest.mark.parametrize(
    ("structured", "message"),
    [
        (
            "{json_file: none.json}",
            "line 7: sampling.structured_outputs.json_file: the schema .*none.json cannot be read",
        ),
        ("{json_file: bad.json}", "json_file: .*bad.json: json is no JSON text"),
        ("{json_file: list.json}", r"json_file: .*list.json: json is \[\], expected a JSON schema"),
        ("{json_file: latin.json}", "latin.json is not valid UTF-8 at byte 3"),
        ("{json_file: 3}", "json_file: expected the path of a JSON schema, found 3"),
        ("{json_file: empty.json, json: {}}", "json_file: json is given too: keep one"),
        (
            "{json_file: empty.json, regex: a}",
            "line 7: sampling.structured_outputs: structured_outputs has json and regex",
        ),
        ("{jason: {}}", "line 7: sampling.structured_outputs: .*unknown key 'jason'; did you mean json?"),
        ("[a]", "line 7: sampling.structured_outputs: structured_outputs is .*expected a mapping"),
        ("{json: {type: objekt}}", "line 7: .*structured_outputs.json cannot be enforced: Invalid type: objekt"),
        ("{regex: (}", "line 7: .*structured_outputs.regex cannot be enforced"),
    ],
)
def test_a_refusal_comes_before_any_work_with_its_place(load, tmp_path, structured, message):
    for name, data in {"bad": b"{", "list": b"[]", "latin": b'{"\xe9": 1}', "empty": b"{}"}.items():
        (tmp_path / f"{name}.json").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        load(structured)


def test_a_missing_package_is_said_before_the_model_is_loaded(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    _llguidance.cache_clear()
    with pytest.raises(ConfigError, match=r"line 7: .*pip install 'nanovllm\[structured\]'"):
        load("{regex: a}")
    _llguidance.cache_clear()


def test_a_row_s_own_grammar_goes_before_the_job_s(load):
    rows = [
        {"prompt": "Hello"},
        {"prompt": "Hello", "sampling": {"structured_outputs": {"choice": ["yes", "no"]}}},
        {"prompt": "Hello", "sampling": {"structured_outputs": {"json": {"type": "objekt"}}}},
        {"prompt": "Hello", "sampling": {"structured_outputs": {"json_file": "schema.json"}}},
        {"prompt": "Hello", "sampling": {"structured_outputs": None, "max_tokens": 3}},
    ]
    code, lines, _ = run(load(f"{{json: {json.dumps(SCHEMA)}}}"), rows)
    assert code == 3
    assert list(json.loads(lines[0]["text"])) == ["b", "a"] and lines[0]["finish_reason"] == "stop"
    assert lines[1]["text"] in ("yes", "no")
    assert lines[2]["text"] is None and lines[2]["error"]["code"] == "invalid_grammar"
    assert "Invalid type: objekt" in lines[2]["error"]["message"]
    # a row cannot make a run read files
    assert lines[3]["error"]["code"] == "invalid_sampling" and "'json_file'" in lines[3]["error"]["message"]
    assert lines[4]["finish_reason"] == "length"


def test_another_order_of_properties_is_another_schema(load):
    rows = [{"prompt": "Hello"}]
    turned = {**SCHEMA, "properties": dict(reversed(SCHEMA["properties"].items()))}
    orders = []
    for schema in (SCHEMA, SCHEMA, turned):
        _, lines, stderr = run(load(f"{{json: {json.dumps(schema)}}}"), rows)
        orders.append((list(json.loads(lines[0]["text"])), "nothing changed" in stderr))
    assert orders == [(["b", "a"], False), (["b", "a"], True), (["a", "b"], False)]


def test_check_refuses_what_a_run_would(load, tmp_path, capsys):
    job = load("{regex: '[ab]{3}'}")
    rows = [{"prompt": "a"}, {"prompt": "b", "sampling": {"structured_outputs": {"regex": "("}}}]
    Path(job.inputs[0]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["check", str(tmp_path / "job.yaml")]) == 3
    out = capsys.readouterr().out
    assert "1 ok" in out and "invalid_grammar: 1" in out


# ---- OpenAI batches


@pytest.mark.parametrize(
    ("body", "structured"),
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
                }
            },
            {"json": AS_TEXT},
        ),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}}, {"regex": "a"}),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
            {"json": AS_TEXT, "disable_any_whitespace": True},
        ),
        ({"structured_outputs": {"choice": ["a"]}, "response_format": None}, {"choice": ["a"]}),
    ],
)
@pytest.mark.parametrize("make", [chat, completion])
def test_a_format_becomes_structured_outputs(tmp_path, make, body, structured):
    code, _, _, llm = run_lines(tmp_path, [make(**body)])
    assert code == 0
    ((_, _, params),) = llm.seen
    assert params.to_dict()["structured_outputs"] == structured


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (
            {"response_format": {"type": "structural_tag"}},
            "response_format",
            "expected the type text, json_object or json_schema",
        ),
        ({"response_format": "json"}, "response_format", 'body.response_format is "json", expected the type'),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format",
            "json_schema.schema is null, expected a JSON schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
            "response_format",
            "json_schema.schema is []",
        ),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "response_format",
            "say the same thing: give one of them",
        ),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs", "body.structured_outputs.regex is '', expected"),
        (
            {"structured_outputs": {"json_file": "x"}},
            "structured_outputs",
            "body.structured_outputs has the unknown key 'json_file'",
        ),
        ({"guided_json": {}}, "guided_json", "use structured_outputs: {json: ...}"),
    ],
)
def test_a_format_that_is_not_served_is_an_error_line(tmp_path, body, param, message):
    code, lines, _, _ = run_lines(tmp_path, [chat("a"), chat("b", **body)])
    assert code == 3 and lines[0]["response"]["status_code"] == 200
    error = lines[1]["response"]["body"]["error"]
    assert (lines[1]["response"]["status_code"], error["param"]) == (400, param)
    assert message in error["message"]


def test_formats_are_enforced_and_a_bad_schema_is_one_error_line(load):
    def body(schema):
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}

    rows = [
        completion("a", "Hello", max_tokens=60, **body(SCHEMA)),
        completion("b", "Hello", **body({"type": "objekt"})),
        completion("c", "Hello", structured_outputs={"regex": "("}),
        completion("d", "Hello", structured_outputs={"choice": ["yes"]}),
    ]
    code, lines, _ = run(load(None), rows)
    assert code == 3
    bodies = [line["response"]["body"] for line in lines]
    assert list(json.loads(bodies[0]["choices"][0]["text"])) == ["b", "a"]
    assert (bodies[1]["error"]["code"], bodies[1]["error"]["param"]) == ("invalid_grammar", "response_format")
    assert (bodies[2]["error"]["code"], bodies[2]["error"]["param"]) == ("invalid_grammar", "structured_outputs")
    assert (bodies[3]["choices"][0]["text"], bodies[3]["choices"][0]["finish_reason"]) == ("yes", "stop")


# ---- generate


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [
        (["--regex", "[ab]{3}-[0-9]"], r"[ab]{3}-[0-9]"),
        (["--choice", "yes", "--choice", "no"], "yes|no"),
        (["--json-schema", "schema.json"], r'\{"b": ?[12], ?"a": ?(true|false)\}'),
        (["--json-schema", "schema.json", "--stream"], r'\{"b": ?[12], ?"a": ?(true|false)\}'),
    ],
)
def test_generate_follows_its_flags(tmp_path, monkeypatch, capsys, flags, pattern):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    monkeypatch.chdir(tmp_path)
    arguments = [
        "generate",
        str(TINY),
        "Hello",
        "--dtype",
        "float32",
        "--threads",
        "1",
        "--max-tokens",
        "60",
        "--seed",
        "1",
    ]
    assert main([*arguments, *flags]) == 0
    assert re.fullmatch(pattern, capsys.readouterr().out.removesuffix("\n"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--regex", "("], "structured_outputs.regex cannot be enforced"),
        (["--json-schema", "none.json"], "--json-schema: the schema none.json cannot be read: No such file"),
        (["--json-schema", "bad.json"], "--json-schema: bad.json: json is no JSON text"),
        (["--regex", "a", "--choice", "b"], "not allowed with argument"),
    ],
)
def test_generate_refuses_before_the_model_is_loaded(tmp_path, monkeypatch, capsys, flags, message):
    (tmp_path / "bad.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "no-model", "Hello", *flags]) == 2
    assert message in capsys.readouterr().err


# ---- what else a body may say


def test_settings_of_this_version_are_served(tmp_path):
    settings = {
        "no_repeat_ngram_size": 3,
        "repetition_detection": {"max_pattern_size": 4, "min_count": 3},
        "typical_p": 0.9,
        "top_n_sigma": 1.5,
        "dry_multiplier": 0.8,
        "dry_base": 2.0,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 64,
        "dry_sequence_breakers": ["\n"],
        "logprob_token_ids": [5, 6],
        "prompt_logprobs": 2,
    }
    for make in (chat, completion):
        (tmp_path / make.__name__).mkdir()
        labels = {"request_id": "r", "cache_salt": "s", "priority": 0, "add_special_tokens": make is completion}
        code, _, _, llm = run_lines(tmp_path / make.__name__, [make(**settings, **labels, thinking_token_budget=-1)])
        assert code == 0
        given = llm.seen[0][2].to_dict()
        expected = {**settings, "repetition_detection": {**settings["repetition_detection"], "min_pattern_size": 1}}
        assert {name: given[name] for name in settings} == expected


@pytest.mark.parametrize(
    ("row", "param", "message"),
    [
        (chat(add_special_tokens=True), "add_special_tokens", "a chat's template writes all of them"),
        (completion(add_special_tokens=False), "add_special_tokens", "a completion's prompt gets those of the model"),
        (chat(return_prompt_text=True), "return_prompt_text", "not served"),
        (chat(use_beam_search=True), "use_beam_search", "only LLM.beam_search has it"),
        (chat(vllm_xargs={"a": 1}), "vllm_xargs", "not served"),
        (chat(return_token_ids="yes"), "return_token_ids", 'body.return_token_ids is "yes", expected true or false'),
        (chat(truncate_prompt_tokens=-1), "truncate_prompt_tokens", "an integer of at least 1; the job's on_overlong"),
        (chat(truncate_prompt_tokens=True), "truncate_prompt_tokens", "an integer of at least 1"),
        (chat(truncate_prompt_tokens=3, truncation_side="middle"), "truncation_side", "expected 'left' or 'right'"),
        (chat(prompt_logprobs=-1), "prompt_logprobs", "body.prompt_logprobs is -1, expected"),
    ],
)
def test_what_is_not_served_is_named(tmp_path, row, param, message):
    _, lines, _, _ = run_lines(tmp_path, [row])
    error = lines[0]["response"]["body"]["error"]
    assert error["param"] == param and message in error["message"]


@pytest.mark.parametrize(
    ("body", "kept", "num_cut"),
    [
        ({"truncate_prompt_tokens": 4}, "6789", 7),
        ({"truncate_prompt_tokens": 4, "truncation_side": "left"}, "6789", 7),
        ({"truncate_prompt_tokens": 4, "truncation_side": "right"}, "012", 7),
        ({"truncate_prompt_tokens": 11}, "0123456789", None),
        ({"truncation_side": "right"}, "0123456789", None),
    ],
)
def test_a_call_may_cut_its_prompt(tmp_path, body, kept, num_cut):
    # the fake tokenizer has a BOS and one id for each character
    _, lines, _, llm = run_lines(tmp_path, [completion("a", "0123456789", max_tokens=2, **body)])
    assert llm.seen[0][1] == (kept if num_cut is None or body.get("truncation_side") == "right" else kept[1:])
    assert lines[0]["response"]["body"].get("num_cut_tokens") == num_cut


def test_ids_and_log_probabilities_come_where_they_were_asked_for(load):
    types = pytest.importorskip("openai.types")
    asked = {"return_token_ids": True, "prompt_logprobs": 1, "max_tokens": 2, "temperature": 0}
    rows = [
        completion("a", "Hello you", logprobs=1, logprob_token_ids=[7, 8], **asked),
        chat("b", "Hello you", logprobs=True, logprob_token_ids=[7, 8], **asked),
        chat("c", "Hello you", max_tokens=2, temperature=0),
    ]
    code, lines, _ = run(load(None), rows)
    assert code == 0
    text, answer, plain = (line["response"]["body"] for line in lines)
    types.Completion.model_validate(text)
    types.chat.ChatCompletion.model_validate(answer)
    (choice,) = text["choices"]
    assert len(choice["token_ids"]) == 2 and len(choice["prompt_logprobs"]) == len(choice["prompt_token_ids"])
    assert choice["prompt_logprobs"][0] is None
    second = choice["prompt_logprobs"][1]
    assert next(iter(second)) == str(choice["prompt_token_ids"][1])
    assert set(second[str(choice["prompt_token_ids"][1])]) == {"logprob", "rank", "decoded_token"}
    assert 2 <= len(choice["logprobs"]["top_logprobs"][0]) <= 3
    (chosen,) = answer["choices"]
    assert len(answer["prompt_logprobs"]) == len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]
    assert len(chosen["logprobs"]["content"][0]["top_logprobs"]) == 2
    assert "token_ids" not in plain["choices"][0] and not {"prompt_token_ids", "prompt_logprobs"} & set(plain)
