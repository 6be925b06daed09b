"""Completions conform to their schema, regex, choice or grammar, whatever runs beside them, or are an error."""

import json
import re
import sys

import numpy as np
import pytest

from nanovllm import ConfigError, Request, RequestError, SamplingParams, Tokenizer, check_structured_outputs
from nanovllm.engine.grammar import StepMasks, TokenGrammar, allows_only
from nanovllm.engine.processors import TokenRules
from nanovllm.kernels.sampling_step import pack_mask
from nanovllm.structured import GrammarMaker, _llguidance, close_objects

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

PERSON = {
    "type": "object",
    "properties": {
        "née": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": -3, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["é", "😀", None, 1.5]}, "minItems": 1, "maxItems": 3},
        "more": {"$ref": "#/$defs/more"},
    },
    "required": ["née", "age", "tags"],
    "additionalProperties": False,
    "$defs": {"more": {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[a-c]{2,4}$"}]}},
}
# llama-f32 ends at 2, 0 and 168, and 168 is the ordinary token "é".
LETTER_EOS = 168


@pytest.fixture
def llm(make_llm):
    made = make_llm()
    yield made
    assert not made.engine.has_unfinished, "a request was left behind"
    made.engine.block_manager.check([])


def run(llm, structured, prompt="Hello", **settings):
    params = SamplingParams(**{"max_tokens": 100, "temperature": 0, "structured_outputs": structured, **settings})
    return llm.generate([prompt], params, use_tqdm=False)[0]


def complete(llm, structured, prompt="Hello", **settings):
    output = run(llm, structured, prompt, **settings)
    assert output.error is None, output.error
    return output.outputs[0]


def refused(llm, structured, **settings):
    output = run(llm, structured, **settings)
    assert output.outputs[0].finish_reason == "error" and output.outputs[0].text == ""
    return output.error


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


# ---- what cannot be enforced


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


# ---- masks


def masks_of(maker, structured, texts=("",)):
    """Masks after each of some texts, as lists of allowed ids."""
    grammars = []
    for text in texts:
        grammars.append(maker.make(SamplingParams(structured_outputs=structured)).copy())
        for token_id in maker._tokenizer.encode(text, add_special_tokens=False) if text else ():
            grammars[-1].accept(token_id)
    found = StepMasks(maker._vocab_size).of([None] * len(texts), grammars)["masks"]
    bits = np.unpackbits(found.view(np.uint8), axis=1, bitorder="little")
    return [np.flatnonzero(row).tolist() for row in bits]


@pytest.mark.parametrize("vocab_size", [487, 500, 512, 10_000, 300])
def test_ids_without_a_token_are_never_allowed(models_dir, vocab_size):
    tokenizer = Tokenizer.from_pretrained(models_dir / "llama-bias")
    assert tokenizer.vocab_size == 487
    maker = GrammarMaker(tokenizer, vocab_size, [2, 99_999])
    start, letters, end = masks_of(maker, {"regex": r"(?s).+"}, ["", "ab", "!"])
    assert 2 not in start and 2 in letters and 2 in end
    assert max(start) < min(487, (vocab_size + 31) // 32 * 32)
    expected = [i for i in range(487) if i not in tokenizer.all_special_ids and i < (vocab_size + 31) // 32 * 32]
    # whole characters and beginnings of them; not what can only continue one
    whole = [i for i in expected if "\ufffd" not in tokenizer.decode([i])]
    assert set(whole) <= set(start) <= set(expected)


def test_tokens_have_the_bytes_that_the_tokenizer_decodes(models_dir):
    for case in ("llama-f32", "llama-odd", "llama-bf16-llama3rope", "qwen2-bf16-tied"):
        tokenizer = Tokenizer.from_pretrained(models_dir / case)
        table = GrammarMaker(tokenizer, tokenizer.vocab_size, [2])._filler.tokenizer
        never = tokenizer.token_to_id("ÿ")  # the byte 0xFF, which no text has
        for token_id in set(range(tokenizer.vocab_size)) - tokenizer.all_special_ids - {never}:
            assert table.decode_bytes([token_id]).decode("utf-8", "replace") == tokenizer.decode([token_id])


class Fixed(TokenGrammar):
    """Allows the same ids for ever."""

    def __init__(self, *ids):
        self.ids = ids

    def accept(self, token_id):
        pass

    def fill(self, grammars, masks):
        for row, grammar in enumerate(grammars):
            masks[row] = pack_mask(grammar.ids, 70)


def test_masks_of_a_step_combine_grammars_and_allowed_ids():
    masks = StepMasks(70)
    rules = [None, TokenRules(pack_mask([1, 33], 70)), None, TokenRules(pack_mask([1, 33], 70)), TokenRules()]
    found = masks.of(rules, [Fixed(0, 69), Fixed(33, 34), None, None, Fixed(2)])
    assert found["masks"].tolist()[:3] == [[1, 0, 32], [0, 2, 0], [4, 0, 0]]
    assert found["mask_rows"].tolist()[:3] == [0, 1, -1] and found["mask_rows"][4] == 2
    assert found["masks"][found["mask_rows"][3]].tolist() == [2, 2, 0]
    again = masks.of([None], [Fixed(31)])
    assert again["masks"].tolist() == [[2**31, 0, 0]]
    assert np.shares_memory(again["masks"], found["masks"])


@pytest.mark.parametrize(
    ("allowed", "ids", "only"),
    [([], [1], True), ([1], [1], True), ([1, 69], [69, 1, 5], True), ([1, 31], [1], False), ([69], [68], False)],
)
def test_whether_a_mask_leaves_only_some_ids(allowed, ids, only):
    mask = pack_mask(allowed, 70)
    assert allows_only(mask, ids) is only
    assert mask.tolist() == pack_mask(allowed, 70).tolist()
