"""`structured_outputs` as a setting: exactly one constraint, in one form; a refusal names the key."""

import json

import pytest

from nanovllm import ConfigError, SamplingParams, StructuredOutputsParams
from nanovllm.structured_params import MAX_CHARS


def setting(**values):
    return SamplingParams(structured_outputs=values).structured_outputs


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"json": {"enum": [], "b": 1, "a": [1.5, None, "é"]}}, {"json": '{"enum":[],"b":1,"a":[1.5,null,"é"]}'}),
        ({"json": ' {"b": 1,\n "a": 2} '}, {"json": '{"b":1,"a":2}'}),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"choice": ["yes", "no", "yes"]}, {"choice": ["yes", "no"]}),
        ({"grammar": 'start: "a"'}, {"grammar": 'start: "a"'}),
        ({"json_object": True, "regex": None}, {"json_object": True}),
        (
            {"json": {}, "disable_any_whitespace": True, "disable_additional_properties": True},
            {"json": "{}", "disable_any_whitespace": True, "disable_additional_properties": True},
        ),
        ({"json_object": True, "whitespace_pattern": " "}, {"json_object": True, "whitespace_pattern": " "}),
    ],
)  # fmt: skip
def test_it_is_kept_in_one_form(values, kept):
    params = SamplingParams(structured_outputs=values)
    assert params.to_dict()["structured_outputs"] == kept
    assert params == SamplingParams.from_dict(json.loads(json.dumps(params.to_dict(only_changed=True))))
    assert params == SamplingParams(structured_outputs=StructuredOutputsParams(**values))
    assert hash(params.structured_outputs) == hash(setting(**kept))
    assert params.changes_logits


def test_the_order_of_properties_counts():
    assert setting(json={"properties": {"a": {}, "b": {}}}) != setting(json={"properties": {"b": {}, "a": {}}})


def test_it_can_be_taken_back():
    job = SamplingParams(structured_outputs={"regex": "a"})
    assert SamplingParams.from_dict({"structured_outputs": None}, base=job).structured_outputs is None
    assert SamplingParams.from_dict({"max_tokens": 3}, base=job).structured_outputs.regex == "a"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("x", "is 'x', expected a mapping with one of json, regex, choice, grammar or json_object or null"),
        ({}, "has none of them, expected exactly one of json, regex, choice, grammar, json_object"),
        ({"json_object": False}, "has none of them"),
        ({"json": {}, "regex": "a"}, "has json and regex, expected exactly one"),
        ({"jason": {}}, "unknown key 'jason'; did you mean json?"),
        ({"structural_tag": "x"}, "unknown key 'structural_tag'; known keys: json, "),
        ({3: 4}, "unknown key 3"),
        ({"json": 3}, "json is 3, expected a JSON schema: an object, or its JSON text"),
        ({"json": "3"}, "json is 3, expected a JSON schema"),
        ({"json": ""}, "json is '', expected a non-empty string"),
        ({"json": "{"}, "json is no JSON text: "),
        ({"json": '{"a": 1, "a": 2}'}, "json is no JSON text: an object has the key 'a' twice"),
        ({"json": {"a": float("nan")}}, "json cannot be written as JSON"),
        ({"json": '{"a": 1e999}'}, "json cannot be written as JSON"),
        ({"json": {"a": {1, 2}}}, "json cannot be written as JSON"),
        ({"json": {True: 1}}, "json cannot be written as JSON: the key True is no text"),
        ({"json": {"a": "\ud800"}}, "json has a lone surrogate"),
        ({"regex": ""}, "regex is '', expected a non-empty string"),
        ({"regex": 3}, "regex is 3"),
        ({"regex": "a\udc00"}, "regex has a lone surrogate at character 1"),
        ({"regex": "a" * (MAX_CHARS + 1)}, f"regex has {MAX_CHARS + 1} characters, expected at most {MAX_CHARS}"),
        ({"grammar": ["a"]}, "grammar is ['a']"),
        ({"choice": []}, "choice is [], expected a list of non-empty strings"),
        ({"choice": "yes"}, "choice is 'yes', expected a list"),
        ({"choice": ["a", ""]}, "choice is '', expected a non-empty string"),
        ({"choice": [1]}, "choice is 1"),
        ({"choice": ["a" * 1000] * 100}, "choice has 100000 characters, expected at most"),
        ({"json_object": "yes"}, "json_object is 'yes', expected true or false"),
        ({"json": {}, "disable_any_whitespace": 1}, "disable_any_whitespace is 1, expected true or false"),
        ({"regex": "a", "disable_any_whitespace": True}, "disable_any_whitespace is about JSON"),
        ({"choice": ["a"], "whitespace_pattern": " "}, "whitespace_pattern is about JSON"),
        ({"json_object": True, "disable_additional_properties": True}, "properties is about a schema"),
        ({"json": {}, "disable_any_whitespace": True, "whitespace_pattern": " "}, "keep one"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_key(values, words):
    with pytest.raises(ConfigError) as caught:
        SamplingParams(structured_outputs=values)
    message = str(caught.value)
    assert message.startswith("sampling: structured_outputs")
    assert words in message
    assert len(message) < 250 and "\n" not in message


def test_a_schema_of_any_depth_is_refused_and_not_followed():
    deep = inner = {}
    for _ in range(5000):
        inner["items"] = inner = {}
    for schema in (deep, '{"items":' * 100_000 + "{}" + "}" * 100_000, '{"items":' * 5000 + "{}" + "}" * 5000):
        with pytest.raises(ConfigError, match=r"nested deeper than 100 levels|characters, expected at most"):
            SamplingParams(structured_outputs={"json": schema})


def test_going_on_past_the_end_contradicts_it():
    with pytest.raises(ConfigError, match="ignore_eos is true but structured_outputs says where the text may end"):
        SamplingParams(structured_outputs={"regex": "a"}, ignore_eos=True)
