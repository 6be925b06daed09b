"""lm-evaluation-harness's generation settings: what is greedy, what stops, how long, and what is cut from a text."""

import pytest

from jobs.lm_eval_generation import GenerationSettings
from nanovllm import ConfigError, SamplingParams


def read(eos="<eos>", **gen_kwargs):
    return GenerationSettings.read(gen_kwargs, 256, eos)


def test_what_a_task_does_not_say():
    settings = read()
    assert settings.params == SamplingParams(temperature=0, max_tokens=256, stop=("<eos>",))
    assert settings.stops == ("<eos>",)


@pytest.mark.parametrize(
    "given, temperature",
    [
        ({}, 0.0),
        ({"do_sample": False}, 0.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.3}, 0.3),
        ({"temperature": 0.3}, 0.3),
        ({"temperature": 0}, 0.0),
    ],
)
def test_temperature(given, temperature):
    assert read(**given).params.temperature == temperature


@pytest.mark.parametrize(
    "given, num_tokens",
    [
        ({"max_gen_toks": 7}, 7),
        ({"max_new_tokens": 7}, 7),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 7}, 7),
        ({"max_completion_tokens": 9, "max_tokens": 8, "max_gen_toks": 7}, 7),
        ({"max_gen_toks": None, "max_tokens": 8}, 8),
    ],
)
def test_length(given, num_tokens):
    assert read(**given).params.max_tokens == num_tokens


@pytest.mark.parametrize(
    "given, eos, stops",
    [
        ({"until": "\n"}, "<eos>", ("\n", "<eos>")),
        ({"until": ["\n\n", "", "Q:"]}, "<eos>", ("\n\n", "Q:", "<eos>")),
        ({"until": ["<eos>", "a"], "stop": ["b", "a"]}, "<eos>", ("<eos>", "a", "b")),
        ({"until": None}, None, ()),
    ],
)
def test_stops(given, eos, stops):
    settings = read(eos, **given)
    assert settings.stops == stops == settings.params.stop


def test_sampling_settings_pass_and_settings_without_effect_are_left_out():
    params = read(do_sample=True, top_p=0.9, top_k=5, repetition_penalty=1.1, use_cache=True, num_beams=1).params
    assert (params.top_p, params.top_k, params.repetition_penalty) == (0.9, 5, 1.1)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"max_gen_toks": "many"}, "max_tokens is 'many'"),
        ({"max_gen_toks": 2.5}, "max_tokens is 2.5"),
        ({"num_beams": 4}, "num_beams: expected 1, found 4"),
        ({"max_length": 100}, "give max_gen_toks instead"),
        ({"until": [1]}, r"until: expected a string or a list of strings, found \[1\]"),
        ({"tempreature": 1}, "unknown key 'tempreature'; did you mean temperature"),
        ({"top_p": 3}, "top_p"),
        ({"max_gen_toks": 0}, "max_tokens"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        read(**given)


@pytest.mark.parametrize(
    "text, think_end, answer",
    [
        ("one two three", None, "one two three"),
        ("one Q: two\n\nthree", None, "one "),
        ("one\n\ntwo Q:", None, "one"),
        ("<think>a Q: b</think>\n four", "</think>", "four"),
        ("a</think>b</think> c Q: d", "</think>", "c "),
        ("nothing was thought", "</think>", "nothing was thought"),
        ("", None, ""),
    ],
)
def test_the_answer_in_a_text(text, think_end, answer):
    assert read(until=["Q:", "\n\n"]).finished(text, think_end) == answer
