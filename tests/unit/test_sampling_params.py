import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanovllm.errors import ConfigError
from nanovllm.sampling_params import SamplingParams, derive_seed, describe_fields

VLLM_DEFAULTS = {
    "n": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "seed": None,
    "stop": [],
    "stop_token_ids": [],
    "ignore_eos": False,
    "max_tokens": 16,
    "min_tokens": 0,
    "thinking_token_budget": None,
    "bad_words": [],
    "logit_bias": None,
    "allowed_token_ids": None,
    "repetition_detection": None,
    "logprobs": None,
    "prompt_logprobs": None,
    "logprob_token_ids": [],
    "structured_outputs": None,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "detokenize": True,
}


LLAMA_CPP_DEFAULTS = {
    "top_n_sigma": 0.0,
    "dry_multiplier": 0.0,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": -1,
    "dry_sequence_breakers": None,
}


def test_defaults_are_vllms_and_all_others_are_off():
    others = {"typical_p": 1.0, "no_repeat_ngram_size": 0}
    assert SamplingParams().to_dict() == VLLM_DEFAULTS | LLAMA_CPP_DEFAULTS | others
    assert SamplingParams().to_dict(only_changed=True) == {}


@pytest.mark.parametrize(
    ("field", "given_value", "kept"),
    [
        ("temperature", 0, 0.0),
        ("temperature", 9e-6, 0.0),
        ("temperature", 1e-5, 0.01),
        ("temperature", 0.009, 0.01),
        ("temperature", 0.01, 0.01),
        ("temperature", 2, 2.0),
        ("top_k", -1, 0),
        ("top_k", 5.0, 5),
        ("top_k", np.int64(7), 7),
        ("top_p", np.float32(0.5), 0.5),
        ("top_p", 1, 1.0),
        ("min_p", 1, 1.0),
        ("seed", -1, None),
        ("seed", -2, -2),
        ("thinking_token_budget", -1, None),
        ("thinking_token_budget", 0, 0),
        ("seed", 2**64 - 1, 2**64 - 1),
        ("seed", -(2**63), -(2**63)),
        ("max_tokens", None, None),
        ("max_tokens", 64.0, 64),
        ("stop", None, ()),
        ("stop", "END", ("END",)),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop_token_ids", None, ()),
        ("stop_token_ids", [0, 7], (0, 7)),
        ("stop_token_ids", np.array([3, 4]), (3, 4)),
        ("repetition_penalty", 1e-3, 1e-3),
        ("top_n_sigma", -1, 0.0),
        ("top_n_sigma", 1, 1.0),
        ("logit_bias", {5: -100}, {5: -100.0}),
        ("logit_bias", {"7": 1, 5: 2.5}, {5: 2.5, 7: 1.0}),
        ("logit_bias", {"5": 1e9}, {5: 100.0}),
        ("logit_bias", {"5": -(10**400)}, {5: -100.0}),
        ("logit_bias", {}, None),
        ("allowed_token_ids", [3, 1], (3, 1)),
        ("bad_words", "no", ("no",)),
        ("dry_sequence_breakers", [], ()),
        ("dry_sequence_breakers", "x", ("x",)),
        ("repetition_detection", {"max_pattern_size": 0, "min_count": 2}, None),
        (
            "repetition_detection",
            {"max_pattern_size": 4.0, "min_count": 3},
            {"max_pattern_size": 4, "min_pattern_size": 1, "min_count": 3},
        ),
        (
            "repetition_detection",
            {"max_pattern_size": 4, "min_pattern_size": 0, "min_count": 2},
            {"max_pattern_size": 4, "min_pattern_size": 1, "min_count": 2},
        ),
    ],
)
def test_value_is_kept_in_one_form(field, given_value, kept):
    value = getattr(SamplingParams(**{field: given_value}), field)
    assert value == kept
    assert type(value) is type(kept)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("n", 0, "an integer of at least 1"),
        ("n", True, "an integer of at least 1"),
        ("n", 1.5, "an integer of at least 1"),
        ("n", None, "an integer of at least 1"),
        ("temperature", -0.1, "a number of at least 0 and at most 2"),
        ("temperature", 2.1, "a number of at least 0 and at most 2"),
        ("temperature", math.nan, "a number of at least 0 and at most 2"),
        ("temperature", math.inf, "a number of at least 0 and at most 2"),
        ("temperature", "0.5", "a number of at least 0 and at most 2"),
        ("temperature", False, "a number of at least 0 and at most 2"),
        ("temperature", 10**400, "a number of at least 0 and at most 2"),
        ("top_p", 0, "a number above 0 and at most 1"),
        ("top_p", 1.01, "a number above 0 and at most 1"),
        ("typical_p", 0.0, "a number above 0 and at most 1"),
        ("min_p", -1e-9, "a number of at least 0 and at most 1"),
        ("top_k", -2, "an integer of at least -1"),
        ("top_k", math.inf, "an integer of at least -1"),
        ("top_k", 2**70, "at most 2147483647"),
        ("presence_penalty", 2.5, "a number of at least -2 and at most 2"),
        ("frequency_penalty", -2.5, "a number of at least -2 and at most 2"),
        ("repetition_penalty", 0, "a number above 0"),
        ("repetition_penalty", math.inf, "a number above 0"),
        ("repetition_penalty", 10**400, "a number above 0"),
        ("seed", 2**64, "or null"),
        ("seed", -(2**63) - 1, "or null"),
        ("seed", "7", "or null"),
        ("max_tokens", 0, "an integer of at least 1 or null"),
        ("min_tokens", -1, "an integer of at least 0"),
        ("thinking_token_budget", -2, "an integer of at least -1"),
        ("thinking_token_budget", "9", "an integer of at least -1"),
        ("stop", "", "a non-empty string or a list of them"),
        ("stop", ["a", ""], "a non-empty string or a list of them"),
        ("stop", ["a", 3], "a non-empty string or a list of them"),
        ("stop", 3, "a non-empty string or a list of them"),
        ("stop", {"a": 1}, "a non-empty string or a list of them"),
        ("stop_token_ids", [-1], "a list of token ids"),
        ("stop_token_ids", [True], "a list of token ids"),
        ("stop_token_ids", ["2"], "a list of token ids"),
        ("stop_token_ids", 2, "a list of token ids"),
        ("stop_token_ids", "12", "a list of token ids"),
        ("logit_bias", [5], "a mapping of token ids"),
        ("logit_bias", "5", "a mapping of token ids"),
        ("allowed_token_ids", [], "expected at least one id"),
        ("allowed_token_ids", [-1], "a list of token ids"),
        ("bad_words", [""], "a non-empty string or a list of them"),
        ("no_repeat_ngram_size", -1, "an integer of at least 0"),
        ("top_n_sigma", -2, "a number of at least -1"),
        ("dry_multiplier", -0.1, "a number of at least 0"),
        ("dry_base", 0.9, "a number of at least 1"),
        ("dry_allowed_length", 0, "an integer of at least 1"),
        ("dry_penalty_last_n", -2, "an integer of at least -1"),
        ("repetition_detection", 3, "a mapping with max_pattern_size"),
        ("ignore_eos", 1, "true or false"),
        ("detokenize", "yes", "true or false"),
        ("skip_special_tokens", None, "true or false"),
    ],
)
def test_refusal_names_field_found_and_expected(field, value, expected):
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"sampling: {field} is ")
    assert expected in message
    assert len(message) < 250
    assert "\n" not in message


def assert_refused(words, **settings):
    with pytest.raises(ConfigError, match=r"^sampling: ") as caught:
        SamplingParams(**settings)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("bias", "words"),
    [
        ({"abc": 5}, ["key 'abc'", "an integer from 0 to the vocabulary's size - 1"]),
        ({"1.5": 5}, ["key '1.5'"]),
        ({True: 5}, ["key True"]),
        ({1.5: 5}, ["key 1.5"]),
        ({"9" * 30: 5}, ["key '999"]),
        ({"5": "x"}, ["key '5' is 'x'", "a number from -100 to 100"]),
        ({"5": math.nan}, ["key '5' is nan", "a number from -100 to 100"]),
        ({"5": math.inf}, ["key '5' is inf", "a number from -100 to 100"]),
        ({"5": None}, ["key '5' is None"]),
        ({"5": True}, ["key '5' is True"]),
        ({"5": 1, 5: 2}, ["token id 5 twice"]),
    ],
)
def test_a_wrong_bias_is_named_with_its_key(bias, words):
    assert_refused(["sampling: logit_bias ", *words], logit_bias=bias)


@pytest.mark.parametrize(
    ("detection", "words"),
    [
        ({}, ["repetition_detection.min_count is None", "at least 2"]),
        ({"max_pattern_size": 4, "min_count": 1}, ["repetition_detection.min_count is 1", "at least 2"]),
        ({"max_pattern_size": -1, "min_count": 2}, ["repetition_detection.max_pattern_size is -1"]),
        ({"max_pattern_size": "4", "min_count": 2}, ["repetition_detection.max_pattern_size is '4'"]),
        ({"max_pattern_size": 4, "min_pattern_size": 5, "min_count": 2}, ["min_pattern_size is 5", "which is 4"]),
        ({"max_size": 4}, ["unknown key 'max_size'", "max_pattern_size from 1"]),
    ],
)
def test_a_wrong_repetition_detection_is_named(detection, words):
    assert_refused(words, repetition_detection=detection)


@pytest.mark.parametrize(
    ("settings", "needs_history", "changes_logits"),
    [
        ({}, False, False),
        ({"top_n_sigma": 1, "top_k": 3, "typical_p": 0.5}, False, False),
        ({"repetition_detection": {"max_pattern_size": 2, "min_count": 2}}, False, False),
        ({"logit_bias": {1: 1}}, False, True),
        ({"allowed_token_ids": [1]}, False, True),
        ({"bad_words": "x"}, False, True),
        ({"thinking_token_budget": 0}, False, False),
        ({"no_repeat_ngram_size": 2}, True, True),
        ({"presence_penalty": 1}, True, True),
        ({"dry_multiplier": 1}, True, True),
        ({"dry_multiplier": 1, "dry_penalty_last_n": 0}, False, False),
    ],
)
def test_what_a_request_needs_is_told(settings, needs_history, changes_logits):
    params = SamplingParams(**settings)
    assert (params.needs_history, params.changes_logits) == (needs_history, changes_logits)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_tokens": 17}, ["min_tokens is 17", "max_tokens, which is 16"]),
        ({"n": 2, "temperature": 0}, ["n is 2", "expected 1", "greedy"]),
        ({"stop": "x", "detokenize": False}, ["detokenize is false", "['x']", "stop_token_ids"]),
    ],
)
def test_contradictions_name_both_fields(settings, words):
    assert_refused(words, **settings)


def test_min_tokens_is_free_without_max_tokens():
    assert SamplingParams(max_tokens=None, min_tokens=1000).min_tokens == 1000


def test_greedy_and_penalties_are_told():
    assert SamplingParams(temperature=0).is_greedy
    assert not SamplingParams(temperature=1e-5).is_greedy
    assert not SamplingParams().has_penalties
    for field in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        assert SamplingParams(**{field: 0.5}).has_penalties


def test_override_of_one_key_keeps_the_base():
    model = SamplingParams.from_dict({"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1})
    job = SamplingParams.from_dict({"temperature": 0}, base=model)
    assert job.is_greedy
    assert job.repetition_penalty == 1.1
    row = SamplingParams.from_dict({"temperature": 0.7}, base=job)
    assert (row.temperature, row.top_k) == (0.7, 20)
    assert model.temperature == 0.6


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("temprature", "temperature"),
        ("max_token", "max_tokens"),
        ("stop_tokens_ids", "stop_token_ids"),
    ],
)
def test_unknown_key_names_the_nearest(key, nearest):
    with pytest.raises(ConfigError, match=f"unknown key '{key}'; did you mean {nearest}\\?"):
        SamplingParams.from_dict({key: 1})


@pytest.mark.parametrize(
    ("key", "cure"),
    [
        ("best_of", "ask for n completions and choose among them"),
        ("use_beam_search", "only LLM.beam_search has it"),
        ("num_beams", "only LLM.beam_search has it"),
        (
            "truncate_prompt_tokens",
            "on_overlong of a job says what is done with long prompts, and batch lines may have it",
        ),
        ("guided_json", "use structured_outputs: {json: ...}"),
        ("guided_regex", "use structured_outputs: {regex: ...}"),
        ("guided_choice", "use structured_outputs: {choice: [...]}"),
        ("guided_grammar", "use structured_outputs: {grammar: ...}"),
        ("max_new_tokens", "use max_tokens"),
        ("n_predict", "use max_tokens"),
        ("do_sample", "use temperature: 0 takes the likeliest token, anything above samples"),
        ("repeat_penalty", "use repetition_penalty"),
        ("top_n", "use top_k for so many of the likeliest tokens, or top_n_sigma"),
        ("stop_sequences", "use stop, which takes one string or several"),
    ],
)
def test_a_setting_of_other_tools_says_what_to_do_instead(key, cure):
    with pytest.raises(ConfigError) as caught:
        SamplingParams.from_dict({key: 1})
    assert str(caught.value) == f"sampling: unknown key '{key}'; {cure}"
    assert SamplingParams.instead_of(key) == cure


def test_no_setting_is_among_those_of_other_tools():
    for info in describe_fields():
        assert SamplingParams.instead_of(info.name) is None
    assert SamplingParams.instead_of(3) is None


@pytest.mark.parametrize("key", ["zzz", "output_kind", "extra_args", "stopping", "mirostat", "temp"])
def test_a_key_that_is_far_from_all_names_none(key):
    with pytest.raises(ConfigError, match=f"unknown key '{key}'; known settings: n, "):
        SamplingParams.from_dict({key: 1})


def test_unknown_key_without_a_near_one_lists_all():
    with pytest.raises(ConfigError, match=r"unknown key 'zzz'; known settings: n, .*detokenize"):
        SamplingParams.from_dict({"zzz": 1})
    with pytest.raises(ConfigError, match="unknown key 3"):
        SamplingParams.from_dict({3: 1})


@pytest.mark.parametrize("mapping", [None, [], "temperature", 3])
def test_settings_must_be_a_mapping(mapping):
    with pytest.raises(ConfigError, match="expected a mapping of settings"):
        SamplingParams.from_dict(mapping)


def test_changes_are_checked_and_copies_are_independent():
    params = SamplingParams(stop="x")
    copy = params.clone()
    assert copy == params
    assert copy is not params
    with pytest.raises(ConfigError, match="top_p is 7"):
        params.replace(top_p=7)
    assert params.replace(top_p=0.5).top_p == 0.5
    assert params.top_p == 1.0


def test_attributes_cannot_be_invented():
    with pytest.raises(AttributeError):
        SamplingParams().temprature = 1.0


def test_every_field_is_described():
    infos = describe_fields()
    assert [info.name for info in infos] == list(SamplingParams().to_dict())
    for info in infos:
        assert info.help
        assert info.expected
    top_p = next(info for info in infos if info.name == "top_p")
    assert (top_p.kind, top_p.default, top_p.low, top_p.high, top_p.above_low) == ("float", 1.0, 0, 1, True)


settings = st.fixed_dictionaries(
    {},
    optional={
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "repetition_penalty": st.floats(0.01, 100),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1, exclude_min=True),
        "top_k": st.integers(-1, 2**31 - 1),
        "min_p": st.floats(0, 1),
        "typical_p": st.floats(0, 1, exclude_min=True),
        "seed": st.none() | st.integers(-(2**63), 2**64 - 1),
        "bad_words": st.none() | st.lists(st.text(min_size=1)),
        "logit_bias": st.none() | st.dictionaries(st.integers(-5, 2**40), st.floats(-200, 200)),
        "allowed_token_ids": st.none() | st.lists(st.integers(0, 2**31 - 1), min_size=1),
        "no_repeat_ngram_size": st.integers(0, 99),
        "repetition_detection": st.none()
        | st.fixed_dictionaries({"max_pattern_size": st.integers(0, 99), "min_count": st.integers(2, 99)}),
        "top_n_sigma": st.floats(-1, 9),
        "dry_multiplier": st.floats(0, 9),
        "dry_base": st.floats(1, 9),
        "dry_sequence_breakers": st.none() | st.lists(st.text(min_size=1)),
        "stop": st.none() | st.text(min_size=1) | st.lists(st.text(min_size=1)),
        "stop_token_ids": st.none() | st.lists(st.integers(0, 2**31 - 1)),
        "ignore_eos": st.booleans(),
        "max_tokens": st.none() | st.integers(100, 10**9),
        "min_tokens": st.integers(0, 16),
        "thinking_token_budget": st.none() | st.integers(-1, 2**31 - 1),
        "skip_special_tokens": st.booleans(),
        "include_stop_str_in_output": st.booleans(),
    },
)


@given(settings)
def test_round_trip_through_json(values):
    params = SamplingParams.from_dict(values)
    assert SamplingParams.from_dict(json.loads(json.dumps(params.to_dict()))) == params
    assert SamplingParams.from_dict(json.loads(json.dumps(params.to_dict(only_changed=True)))) == params


@given(st.dictionaries(st.sampled_from(list(VLLM_DEFAULTS)), st.none() | st.booleans() | st.text() | st.floats()))
def test_any_value_gives_settings_or_our_error(values):
    try:
        params = SamplingParams.from_dict(values)
    except ConfigError:
        return
    assert 0 <= params.temperature <= 2
    assert 0 < params.top_p <= 1
    assert params.top_k >= 0


def test_derived_seed_is_fixed_for_ever():
    # What `printf 0:a17 | b2sum -l 64` prints, read as a little-endian integer.
    assert derive_seed(0, "a17") == int.from_bytes(bytes.fromhex("2ffa212395455963"), "little")
    seeds = {
        derive_seed(engine_seed, key) for engine_seed in (0, 1, -1) for key in ("", "0", "1", "1:0", "é", "\ud800")
    }
    assert len(seeds) == 18
    assert all(0 <= seed < 2**64 for seed in seeds)
