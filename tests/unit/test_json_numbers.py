"""A JSON number that goes on for ever ends when it has enough digits, and no other text is touched."""

import json

import numpy as np
import pytest
from structured_runs import checked, run

from nanovllm import SamplingParams, Tokenizer
from nanovllm.engine.grammar import StepMasks
from nanovllm.engine.processors import TokenRules
from nanovllm.json_numbers import JsonPlace
from nanovllm.kernels.sampling_step import pack_mask
from nanovllm.structured import GrammarMaker

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

EOS = 2


@pytest.mark.parametrize(
    ("text", "digits", "exponent_digits", "has_fraction", "in_string"),
    [
        ("", 0, None, False, False),
        ("12", 2, None, False, False),
        ("-0.001", 4, None, True, False),
        ('{"a": 12', 2, None, False, False),
        ('{"a": 1.5, "b": 7', 1, None, False, False),
        ("[1.5e+10", 2, 2, True, False),
        ("[1e5,", 0, None, False, False),
        ("[1e5, 23", 2, None, False, False),
        ("[true", 0, None, False, False),
        ('"123', 0, None, False, True),
        ('["a\\"12', 0, None, False, True),
        ('["a\\\\", 12', 2, None, False, False),
        ('["é\\u00e9😀", 4', 1, None, False, False),
        ("12 ", 0, None, False, False),
        ("12}", 0, None, False, False),
    ],
)
def test_the_place_is_told_from_the_text(text, digits, exponent_digits, has_fraction, in_string):
    data = text.encode()
    for cut in range(len(data) + 1):
        place = JsonPlace().after(data[:cut]).after(data[cut:])
        found = (place.num_digits, place.num_exponent_digits, place.has_fraction, place.in_string)
        assert found == (digits, exponent_digits, has_fraction, in_string)


@pytest.mark.parametrize(
    ("text", "is_long"),
    [
        ("1" * 23, False), ("1" * 24, True), ("0." + "1" * 23, True), ("1e12", False), ("1e123", True),
        ("1e-000", True), ('"' + "1" * 30, False), ("1" * 30 + ",1", False),
    ],
)  # fmt: skip
def test_when_a_number_is_long(text, is_long):
    assert JsonPlace().after(text.encode()).is_long == is_long


def test_a_number_near_a_bound_that_is_excluded_is_long_earlier():
    place = JsonPlace(most_with_fraction=13)
    assert not place.after(b"1" * 20).is_long
    assert not place.after(b"0." + b"9" * 11).is_long and place.after(b"0." + b"9" * 12).is_long


# ---- with a grammar


@pytest.fixture(scope="module")
def tokenizer(models_dir):
    return Tokenizer.from_pretrained(models_dir / "llama-f32")


@pytest.fixture(scope="module")
def maker(tokenizer):
    return GrammarMaker(tokenizer, tokenizer.vocab_size, [EOS])


def single(tokenizer, character):
    (token_id,) = tokenizer.encode(character, add_special_tokens=False)
    return token_id


def allowed(grammar, tokenizer, rules=None):
    bits = StepMasks(tokenizer.vocab_size).of([rules], [grammar])["masks"][0].view(np.uint8)
    return np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()


def begun(maker, structured, text=""):
    grammar = maker.make(SamplingParams(structured_outputs=structured)).copy()
    for character in text:
        grammar.accept(single(maker._tokenizer, character))
    return grammar


def insist(maker, structured, wanted, most=120):
    """Take the first of the characters in `wanted` that is allowed, else the end, else the lowest id."""
    tokenizer, grammar, text = maker._tokenizer, begun(maker, structured), ""
    while not grammar.is_done and len(text) < most:
        ids = allowed(grammar, tokenizer)
        preferred = [single(tokenizer, character) for character in wanted] + [EOS]
        token_id = next((token_id for token_id in preferred if token_id in ids), ids[0])
        grammar.accept(token_id)
        text += "" if token_id == EOS else tokenizer.decode([token_id])
    assert grammar.is_done and grammar.error is None
    return text


@pytest.mark.parametrize(
    ("schema", "wanted", "expected"),
    [
        ({"type": "number", "minimum": -1.5, "maximum": 2.25}, "0.", "0." + 23 * "0"),
        ({"type": "integer"}, "3", 24 * "3"),
        ({"type": "integer"}, "-3", "-" + 24 * "3"),
        ({"type": "number"}, "7", 24 * "7"),
        ({"type": "number"}, "e+01", "0e+000"),
        ({"type": "number"}, "e-91", "-9e-999"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}, "8",
         f"[{24 * '8'},{24 * '8'}]"),
    ],
)  # fmt: skip
def test_a_model_that_insists_on_digits_gets_24(maker, schema, wanted, expected):
    assert insist(maker, {"json": schema}, wanted) == expected


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, "0."),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, "9.0"),
        ({"type": "number", "exclusiveMinimum": 1.5, "maximum": 3}, "1.50"),
        ({"type": "number", "exclusiveMinimum": 9.5, "maximum": 10}, "9.50"),
        ({"type": "number", "exclusiveMaximum": -1.5, "minimum": -3}, "-1.50"),
        ({"type": "integer", "multipleOf": 7}, "3"),
        ({"type": "integer", "multipleOf": 10}, "3"),
        ({"type": "integer", "multipleOf": 99}, "4"),
        ({"type": "integer", "multipleOf": 100}, "0123"),
        ({"const": 10**60}, "1"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "^[0-9]{40}$"}, "b": {"type": "number"}},
          "required": ["a", "b"], "additionalProperties": False}, "5"),
    ],
)  # fmt: skip
def test_a_number_that_cannot_end_is_led_to_where_it_can(maker, schema, wanted):
    text = insist(maker, {"json": schema}, wanted)
    jsonschema.validate(json.loads(text), schema)
    assert len(text) < 100


def test_numbers_of_any_object_are_bounded(maker, tokenizer):
    digits = {single(tokenizer, digit) for digit in "0123456789"}
    before, after = (begun(maker, {"json_object": True}, '{"a":' + n * "1") for n in (23, 24))
    assert digits <= set(allowed(before, tokenizer))
    assert not digits & set(allowed(after, tokenizer)) and single(tokenizer, "}") in allowed(after, tokenizer)


@pytest.mark.parametrize(
    "structured", [{"regex": "[0-9]+"}, {"grammar": "start: /[0-9]+/"}, {"choice": ["1" * 50, "11"]}]
)
def test_digits_of_other_grammars_are_not_bounded(maker, tokenizer, structured):
    grammar = begun(maker, structured, "1" * 40)
    assert single(tokenizer, "1") in allowed(grammar, tokenizer)


def test_digits_stay_where_nothing_else_is_allowed_besides(maker, tokenizer):
    one, end = single(tokenizer, "1"), pack_mask([EOS], tokenizer.vocab_size)
    grammar = begun(maker, {"json": {"type": "integer"}}, "1" * 30)
    only_digits = pack_mask([one], tokenizer.vocab_size)
    assert allowed(grammar, tokenizer, TokenRules(only_digits)) == [one]
    assert allowed(grammar, tokenizer, TokenRules(only_digits | end)) == [EOS]


def test_copies_count_for_themselves(maker, tokenizer):
    one = single(tokenizer, "1")
    first = begun(maker, {"json": {"type": "integer"}}, "1" * 23)
    second = first.copy()
    second.accept(one)
    assert one in allowed(first, tokenizer) and one not in allowed(second, tokenizer)


@pytest.fixture
def llm(make_llm):
    yield from checked(make_llm)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "n": 3, "seed": 1}, {"min_tokens": 90}])
def test_completions_of_a_model_that_loves_a_digit_end(llm, tokenizer, settings):
    schema = {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}, "minItems": 2, "maxItems": 2}
    bias = {single(tokenizer, "0"): 90, single(tokenizer, "."): 100}
    output = run(llm, {"json": schema}, logit_bias=bias, **settings)
    assert [completion.finish_reason for completion in output.outputs] == ["stop"] * len(output.outputs)
    for completion in output.outputs:
        assert json.loads(completion.text) == [0, 0] and completion.text.count("0") == 48
