"""Completions conform to their schema, regex, choice or grammar, and end where it ends, whatever runs beside them."""

import json
import re

import pytest
from structured_runs import PERSON, checked, complete, refused, run

from nanovllm import Request, SamplingParams, Tokenizer
from nanovllm.structured import GrammarMaker, close_objects

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

# llama-f32 ends at 2, 0 and 168, and 168 is the ordinary token "é".
LETTER_EOS = 168


@pytest.fixture
def llm(make_llm):
    yield from checked(make_llm)


# ---- what comes out


@pytest.mark.parametrize(
    "case", ["llama-f32", "llama-bias", "llama-odd", "qwen2-bf16-tied", "qwen3-bf16", "llama-dynamic", "mistral-swa"]
)
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "n": 3, "seed": 1}])
def test_json_conforms_to_its_schema(make_llm, case, settings):
    output = run(make_llm(case), {"json": PERSON}, **settings)
    assert output.error is None
    for completion in output.outputs:
        assert completion.finish_reason == "stop" and completion.stop_reason is None
        value = json.loads(completion.text)
        jsonschema.validate(value, PERSON)
        assert list(value)[:3] == ["née", "age", "tags"]
    assert len({completion.text for completion in output.outputs}) == len(output.outputs)


@pytest.mark.parametrize(
    ("structured", "pattern"),
    [
        ({"regex": r"[0-9]{3}-(x|yz)"}, r"[0-9]{3}-(x|yz)"),
        ({"regex": r"\d{1,8}/\n?"}, r"[0-9]{1,8}/\n?"),
        (
            {"choice": ["yes", "yes please", "no (never)", "/a\\b|c/", "a\nb", "😀"]},
            r"yes( please)?|no \(never\)|/a\\b\|c/|a\nb|😀",
        ),
        ({"grammar": 'start: "a" | "b" NUMBER\nNUMBER: /[0-9]{2}/'}, r"a|b[0-9]{2}"),
        ({"grammar": 'root ::= "a" | "b" number\nnumber ::= [0-9] [0-9]'}, r"a|b[0-9]{2}"),
    ],
)  # fmt: skip
def test_text_conforms_to_its_grammar(llm, structured, pattern):
    for settings in ({}, {"temperature": 1.0, "seed": 3}, {"temperature": 2.0, "seed": 4}):
        assert re.fullmatch(pattern, complete(llm, structured, **settings).text)


def test_every_choice_can_be_drawn(llm):
    choices = ["yes", "yes please", "no", "😀"]
    texts = [run(llm, {"choice": choices}, temperature=2.0, n=60, seed=1)]
    assert {completion.text for completion in texts[0].outputs} == set(choices)


def test_any_object_will_do(llm):
    answer = complete(llm, {"json_object": True}, temperature=1.0, seed=4, max_tokens=150)
    assert answer.text.startswith("{")
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.text), dict)


@pytest.mark.parametrize(
    ("switches", "allowed", "refused_texts"),
    [
        (
            {},
            ['{"a":1,"b":2}', '{"a": 1, "b": 2}', '{"a": 1,"b":2}'],
            ['{"a":  ', '{"a":\n', "{ ", '{"a" ', '{"a":1 ', '{"a":1,\n', '{"a":1,"b":2} '],
        ),
        ({"disable_any_whitespace": True}, ['{"a":1,"b":2}'], ['{"a": ', '{"a":1, ']),
        ({"whitespace_pattern": "\n"}, ['{\n"a"\n:\n1,\n"b":2\n}'], ['{"a": ', '{"a":\n\n']),
    ],
)  # fmt: skip
def test_white_space_in_json_is_bounded(models_dir, switches, allowed, refused_texts):
    number = {"type": "integer"}
    schema = {"type": "object", "properties": {"a": number, "b": number}, "required": ["a", "b"]}
    tokenizer = Tokenizer.from_pretrained(models_dir / "llama-f32")
    maker = GrammarMaker(tokenizer, 500, [2])
    grammar = maker.make(SamplingParams(structured_outputs={"json": schema, **switches}))
    # one byte a token, so that no token goes over what is to be refused
    ids = {char: tokenizer.encode(char, add_special_tokens=False)[0] for char in '{}": ,\n12ab'}
    for text in allowed:
        one = grammar.copy()
        assert one.matcher.try_consume_tokens([ids[char] for char in text]) == len(text)
    for text in refused_texts:
        one = grammar.copy()
        assert one.matcher.try_consume_tokens([ids[char] for char in text]) == len(text) - 1


def test_objects_can_be_closed():
    schema = {
        "properties": {"properties": {"properties": {"a": {}}}, "open": {"properties": {}, "additionalProperties": {}}},
        "anyOf": [{"patternProperties": {"x": {"type": "object"}}}],
        "const": {"properties": {}},
    }
    close_objects(schema)
    assert schema == {
        "properties": {
            "properties": {"properties": {"a": {}}, "additionalProperties": False},
            "open": {"properties": {}, "additionalProperties": {}},
        },
        "anyOf": [{"patternProperties": {"x": {"type": "object"}}, "additionalProperties": False}],
        "const": {"properties": {}},
        "additionalProperties": False,
    }


def test_a_closed_object_has_no_other_properties(llm):
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}}}
    structured = {"json": schema, "disable_additional_properties": True}
    for seed in range(5):
        assert set(json.loads(complete(llm, structured, temperature=2.0, seed=seed).text)) <= {"a"}


# ---- where it ends


def test_a_complete_grammar_ends_the_completion_at_once(llm):
    answer = complete(llm, {"regex": "[ab]{4}"}, include_stop_str_in_output=True)
    assert len(answer.text) == 4
    assert llm.tokenizer.decode(answer.token_ids) == answer.text  # no EOS behind it


def test_where_a_text_may_go_on_an_eos_ends_it(llm):
    answer = complete(llm, {"regex": "a+"})
    assert answer.finish_reason == "stop" and answer.token_ids[-1] in (2, 0, LETTER_EOS)
    assert re.fullmatch("a+", answer.text)


def test_the_length_ends_it_inside_the_grammar(llm):
    answer = complete(llm, {"json": PERSON}, max_tokens=7)
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 7)
    assert answer.text.startswith('{"née":')


def test_no_eos_before_min_tokens(llm):
    assert len(complete(llm, {"regex": "a+"}, min_tokens=3).token_ids) < 15
    answer = complete(llm, {"regex": "a+"}, min_tokens=15)
    assert len(answer.token_ids) >= 15 and re.fullmatch("a+", answer.text)


@pytest.mark.parametrize("structured", [{"regex": "[ab]{3}"}, {"choice": ["yes", "yes please"]}])
def test_a_complete_grammar_ends_before_min_tokens_too(llm, structured):
    answer = complete(llm, structured, min_tokens=90)
    assert answer.finish_reason == "stop" and answer.text in ("yes please", answer.text[:3])
    assert len(answer.token_ids) < 15


def test_an_eos_id_that_is_text_cannot_end_it_in_the_middle(llm):
    assert LETTER_EOS in llm.engine.spec.eos_token_ids
    for seed in range(8):
        answer = complete(llm, {"regex": "(é|e)(é|e)x"}, temperature=2.0, seed=seed)
        assert LETTER_EOS not in answer.token_ids and re.fullmatch("(é|e)(é|e)x", answer.text)
    ends = {complete(llm, {"regex": "é{1,2}"}, temperature=2.0, seed=seed).text for seed in range(8)}
    assert ends <= {"é", "éé"}


def test_a_stop_string_ends_it(llm):
    answer = complete(llm, {"regex": "[xy]{20,}"}, stop="xy", temperature=1.0, seed=1)
    assert (answer.finish_reason, answer.stop_reason) == ("stop", "xy")
    assert "xy" not in answer.text


# ---- together with other settings


def test_log_probabilities_are_those_of_the_model(llm):
    first = complete(llm, {"regex": "[0-9]"}, logprobs=0)
    (position,) = first.logprobs
    raw = complete(llm, None, max_tokens=1, logprob_token_ids=[first.token_ids[0]]).logprobs[0]
    assert raw[first.token_ids[0]].logprob == position[first.token_ids[0]].logprob
    assert position[first.token_ids[0]].rank > 1


def test_allowed_ids_hold_too(llm):
    letters = llm.tokenizer.encode("abc", add_special_tokens=False)
    answer = complete(llm, {"regex": "[a-z]{8}"}, allowed_token_ids=letters)
    assert set(answer.token_ids) <= set(letters) and len(answer.text) == 8
    error = refused(llm, {"regex": "[0-9]+"}, allowed_token_ids=letters)
    assert error.code == "no_token_allowed" and "structured_outputs" in error.message


def test_the_text_does_not_depend_on_what_runs_beside(make_llm):
    """Alone, in any batch, in a cache so small that sequences are preempted: the same ids and log probabilities."""
    requests = []
    for i in range(24):
        structured = [None, {"json": PERSON}, {"regex": "[a-z]{30,60}"}, {"json_object": True}][i % 4]
        params = SamplingParams(
            max_tokens=50, temperature=0 if i % 3 == 0 else 1.0, n=1 if i % 3 == 0 else 2,
            logprobs=1 if i % 5 else None, structured_outputs=structured, repetition_penalty=1.2 if i % 2 else 1.0,
        )  # fmt: skip
        requests.append(Request([(7 * i + j) % 400 + 3 for j in range(10 + 3 * i)], params, str(i), data=i))

    def results(llm, requests):
        return {output.data: (output.error, output.outputs) for output in llm.generate_iter(requests)}

    alone, llm = {}, make_llm()
    for request in requests:
        alone |= results(llm, [request])
    assert all(error is None for error, _ in alone.values())
    assert results(make_llm(), requests) == alone
    scarce = make_llm(kv_cache_memory="172KiB", max_num_batched_tokens=48, threads=2)
    assert results(scarce, requests[::-1]) == alone
    assert scarce.engine.scheduler.num_preemptions > 0


def test_a_row_without_a_grammar_is_not_touched(make_llm):
    plain = Request("Hello", SamplingParams(max_tokens=20, temperature=0), "p", data="p")
    bound = Request("Hello", SamplingParams(max_tokens=20, temperature=0, structured_outputs={"regex": "[ab]{9}"}), "b")
    (alone,) = make_llm().generate_iter([plain])
    together = {output.request_id: output for output in make_llm().generate_iter([bound, plain])}
    assert together["p"].outputs == alone.outputs
    assert re.fullmatch("[ab]{9}", together["b"].outputs[0].text)


def test_equal_requests_with_unequal_grammars_are_not_one(llm):
    params = [
        SamplingParams(max_tokens=30, temperature=0, structured_outputs={"regex": regex})
        for regex in ("[0-9]{5}", "[0-9]{5}", "[a-c]{5}")
    ]
    outputs = llm.generate(["Hello"] * 3, params, use_tqdm=False)
    assert llm.stats()["deduplicated"] == 1
    texts = [output.outputs[0].text for output in outputs]
    assert texts[0] == texts[1] and re.fullmatch("[0-9]{5}", texts[0]) and re.fullmatch("[a-c]{5}", texts[2])
