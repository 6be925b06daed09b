"""A grammar that cannot be enforced is an error of its request, and never an unconstrained text."""

import json
import re
import sys

import pytest
from structured_runs import PERSON, checked, complete, refused

from nanovllm import ConfigError, Request, RequestError, SamplingParams, Tokenizer, check_structured_outputs
from nanovllm.structured import GrammarMaker, _llguidance

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture
def llm(make_llm):
    yield from checked(make_llm)


@pytest.mark.parametrize(
    ("structured", "words"),
    [
        ({"json": {"type": "objekt"}}, "structured_outputs.json cannot be enforced: Invalid type: objekt"),
        ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json": {"$ref": "#/$defs/none"}}, "does not exist"),
        ({"json": {"$ref": "http://example.com/x"}}, "does not fetch resources"),
        ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "Unsatisfiable"),
        ({"json": {"enum": []}}, "Unsatisfiable"),
        ({"json": {"x-guidance": {"lenient": True}, "not": {}}}, "not"),
        (
            {"json": {"type": "array", "items": {"patternProperties": {"^k[0-9]$": {}}, "minProperties": 2}}},
            "structured_outputs.json cannot be enforced: minProperties is 2 where 0 properties are required and others",
        ),
        ({"regex": "("}, "structured_outputs.regex cannot be enforced"),
        ({"grammar": "start: x"}, "structured_outputs.grammar cannot be enforced"),
        ({"grammar": "start: start"}, "no text conforms to it"),
        ({"grammar": "root ::= x"}, "the GBNF grammar cannot be read"),
        ({"grammar": "root ::= " + "(" * 9000 + '"a"' + ")" * 9000}, "structured_outputs.grammar cannot be enforced"),
        ({"grammar": "start: " + "(" * 30000 + '"a"' + ")" * 30000}, "too deeply nested"),
        ({"regex": "(" * 30000 + "a" + ")" * 30000}, "structured_outputs.regex cannot be enforced"),
        ({"json_object": True, "whitespace_pattern": "("}, "structured_outputs.json_object cannot be enforced"),
    ],
)
def test_it_is_an_error_of_its_request_alone(llm, structured, words):
    bad = SamplingParams(max_tokens=40, temperature=0, structured_outputs=structured)
    good = bad.replace(structured_outputs={"regex": "[ab]{3}"})
    outputs = llm.generate(["Hello"] * 3, [good, bad, good], use_tqdm=False)
    error = outputs[1].error
    assert error.code == "invalid_grammar" and words in error.message
    assert outputs[1].outputs[0].token_ids == []
    assert len(error.message) < 320 and "\n" not in error.message
    assert [re.fullmatch("[ab]{3}", outputs[i].outputs[0].text) is not None for i in (0, 2)] == [True, True]


def chain_of_references(length):
    steps = {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(length)}
    return {"$defs": {**steps, str(length): {}}, "$ref": "#/$defs/0"}


@pytest.mark.parametrize(
    "structured",
    [
        {"json": chain_of_references(1500)},
        {"grammar": "start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(4500)) + '\na4500: "a"'},
        {"json": json.dumps({"enum": [f"value {i}" for i in range(4000)]})},
        {"choice": [f"choice {i}" for i in range(5000)]},
        {"json": {"type": "array", "items": {"type": "string", "maxLength": 10**9}, "maxItems": 10**9}},
    ],
)  # fmt: skip
def test_a_large_grammar_does_no_harm(llm, structured):
    answer = complete(llm, structured, max_tokens=5)
    assert answer.text and len(answer.token_ids) <= 5


def test_a_recursive_schema_is_followed(llm):
    tree = {"type": "object", "properties": {"c": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}}}
    schema = {**tree, "additionalProperties": False, "required": ["c"]}
    texts = [complete(llm, {"json": schema}, temperature=1.0, seed=seed, max_tokens=190) for seed in range(4)]
    for answer in texts:
        if answer.finish_reason == "stop":
            jsonschema.validate(json.loads(answer.text), schema)
    assert any(answer.finish_reason == "stop" for answer in texts)


@pytest.mark.slow
def test_a_grammar_that_would_take_all_memory_is_refused(llm):
    bomb = {"allOf": [{"type": "string", "pattern": f".*a.{{{i}}}b.*"} for i in range(1, 60)]}
    error = refused(llm, {"json": bomb})
    assert error.code == "invalid_grammar" and "takes more than 512 MiB or 10 s" in error.message
    assert refused(llm, {"json": bomb}).message == error.message
    assert re.fullmatch("[ab]{3}", complete(llm, {"regex": "[ab]{3}"}).text)


def test_a_trial_that_ends_is_started_again(models_dir):
    maker = GrammarMaker(Tokenizer.from_pretrained(models_dir / "llama-f32"), 500, [2])

    def make(regex):
        return maker.make(SamplingParams(structured_outputs={"regex": regex}))

    make("a")
    child = maker._filler.trial._child
    child.kill()
    child.wait()
    make("b")
    assert maker._filler.trial._child is not child


def test_a_grammar_that_ends_its_trial_is_refused(models_dir, monkeypatch):
    maker = GrammarMaker(Tokenizer.from_pretrained(models_dir / "llama-f32"), 500, [2])
    params = SamplingParams(structured_outputs={"regex": "a"})
    trial = maker._filler.trial
    monkeypatch.setattr(trial, "_write", lambda source: (trial._child.kill(), trial._child.wait()))
    with pytest.raises(RequestError, match=r"takes more than 512 MiB or 10 s; make it simpler") as caught:
        maker.make(params)
    assert caught.value.code == "invalid_grammar"
    monkeypatch.undo()
    with pytest.raises(RequestError, match="takes more than"):  # what is known is not tried again
        maker.make(params)
    maker.make(SamplingParams(structured_outputs={"regex": "b"}))


def test_a_failure_half_way_is_an_error_and_no_text_without_a_grammar(llm):
    inbox = []
    params = SamplingParams(max_tokens=40, temperature=0, structured_outputs={"regex": "[ab]{30}"})
    waiter = llm.dispatcher.start(Request("Hello", params, "x"), inbox)
    llm.dispatcher.step()
    llm.dispatcher.step()
    (seq,) = waiter.work.seqs
    assert seq.num_completion == 2
    assert not seq.grammar.matcher.consume_token(llm.tokenizer.encode("!", add_special_tokens=False)[0])
    llm.dispatcher.step()
    assert inbox == [waiter]
    assert (seq.finish_reason, seq.num_completion) == ("error", 2)
    assert seq.grammar.error.code == "grammar_failed"


def test_a_token_that_does_not_fit_is_an_error(models_dir):
    maker = GrammarMaker(Tokenizer.from_pretrained(models_dir / "llama-f32"), 500, [2])
    grammar = maker.make(SamplingParams(structured_outputs={"regex": "a"}))
    grammar.accept(2)
    assert grammar.error.code == "grammar_failed" and not grammar.is_done


def test_a_model_without_an_end_of_sequence_id(make_llm, edited_model):
    folder = edited_model("llama-f32", config={"eos_token_id": None}, generation_config={"eos_token_id": None})
    error = refused(make_llm(folder), {"regex": "a"})
    assert error.code == "structured_outputs_unavailable" and "the model's files name none" in error.message


def test_a_missing_package_is_named_with_its_cure(monkeypatch, llm):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    _llguidance.cache_clear()
    params = SamplingParams(structured_outputs={"regex": "a"})
    with pytest.raises(ConfigError, match=r"needs? the package llguidance.*pip install 'nanovllm\[structured\]'"):
        check_structured_outputs(params)
    check_structured_outputs(SamplingParams())
    error = refused(llm, {"regex": "a"})
    assert error.code == "structured_outputs_unavailable" and "pip install 'nanovllm[structured]'" in error.message
    assert complete(llm, None, max_tokens=3).finish_reason == "length"
    _llguidance.cache_clear()


def test_grammars_are_checked_without_a_model():
    check_structured_outputs(SamplingParams(structured_outputs={"json": PERSON}))
    for structured in ({"json": {"type": "objekt"}}, {"regex": "("}, {"grammar": "start: x"}):
        with pytest.raises(RequestError, match="cannot be enforced") as caught:
            check_structured_outputs(SamplingParams(structured_outputs=structured))
        assert caught.value.code == "invalid_grammar"
