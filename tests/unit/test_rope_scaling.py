"""Rotary tables against values worked out by hand; head_dim 8 and theta 10000 give plain 1, 0.1, 0.01, 0.001."""

import json

import numpy as np
import pytest

from nanovllm.errors import ConfigError
from nanovllm.models import load_spec

BASE = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
}
PLAIN = [1.0, 0.1, 0.01, 0.001]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 64,
    "short_factor": [1, 1, 2, 4],
    "long_factor": [1, 2, 5, 10],
}


@pytest.fixture
def spec_of(tmp_path):
    def build(max_model_len=None, **keys):
        (tmp_path / "config.json").write_text(json.dumps({**BASE, **keys}), encoding="utf-8")
        return load_spec(tmp_path, max_model_len)

    return build


def assert_table(rope, expected):
    assert rope.inv_freq.dtype == np.float32
    assert not rope.inv_freq.flags.writeable
    np.testing.assert_allclose(rope.inv_freq, expected, rtol=1e-6)


def test_default(spec_of):
    spec = spec_of()
    assert_table(spec.rope, PLAIN)
    assert (spec.rope.rope_type, spec.rope.attention_scaling, spec.max_context) == ("default", 1.0, 256)
    assert spec.rope.regime == "default, theta 10000"


def test_theta_inside_the_rope_object_wins(spec_of):
    assert_table(spec_of(rope_theta=16.0).rope, [1, 0.5, 0.25, 0.125])
    inside = {"rope_type": "default", "rope_theta": 16}
    assert_table(spec_of(rope_theta=10000.0, rope_parameters=inside).rope, [1, 0.5, 0.25, 0.125])


def test_linear(spec_of):
    spec = spec_of(rope_scaling={"type": "linear", "factor": 4})
    assert_table(spec.rope, [0.25, 0.025, 0.0025, 0.00025])
    assert spec.max_context == 1024


def test_dynamic_is_settled_by_max_model_len(spec_of):
    scaling = {"type": "dynamic", "factor": 2.0}
    short = spec_of(max_position_embeddings=100, rope_scaling=scaling)
    assert_table(short.rope, PLAIN)
    assert short.max_context == 200
    assert "unscaled up to 100" in short.rope.regime
    assert_table(spec_of(50, max_position_embeddings=100, rope_scaling=scaling).rope, PLAIN)
    # theta grows by (2 * 300 / 100 - 1) ** (8 / 6), so pair i shrinks by 5 ** (i / 3)
    long = spec_of(300, max_position_embeddings=100, rope_scaling=scaling)
    assert_table(long.rope, [1, 0.05848035, 0.003419952, 0.0002])
    assert "300 positions over 100" in long.rope.regime


def test_yarn(spec_of):
    spec = spec_of(rope_scaling=YARN)
    # 32 turns in 64 positions lie before pair 0, 1 turn at pair 1.008: the ramp runs from 0 to 2.
    assert_table(spec.rope, [1, 0.0625, 0.0025, 0.00025])
    assert spec.rope.attention_scaling == pytest.approx(1.1386294361)
    assert spec.rope.regime == "yarn, factor 4 over 64 original positions"
    assert spec.max_context == 256


def test_yarn_ramp_options(spec_of):
    assert_table(spec_of(rope_scaling={**YARN, "truncate": False}).rope, [1, 0.02559525, 0.0025, 0.00025])
    narrow = {**YARN, "beta_fast": 4, "beta_slow": 2}  # ends 0.41 and 0.71, so 0 and 1
    assert_table(spec_of(rope_scaling=narrow).rope, [1, 0.025, 0.0025, 0.00025])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"attention_factor": 1.3}, 1.3),
        ({"attention_factor": 1.3, "mscale": 0.5, "mscale_all_dim": 0.7}, 1.3),
        ({"mscale": 0.707, "mscale_all_dim": 1.0}, 0.96432691),
        ({"mscale": 0.707, "mscale_all_dim": 0.707}, 1.0),
        ({"mscale": 0.707}, 1.1386294361),
        ({"mscale": 0.707, "mscale_all_dim": 0}, 1.1386294361),
        ({"factor": 1.0}, 1.0),
    ],
)
def test_yarn_attention_factor(spec_of, keys, expected):
    assert spec_of(rope_scaling={**YARN, **keys}).rope.attention_scaling == pytest.approx(expected, abs=1e-7)


def test_yarn_original_length(spec_of):
    without = {"rope_type": "yarn", "factor": 4.0}
    assert spec_of(max_position_embeddings=64, rope_scaling=without).max_context == 256
    assert_table(spec_of(max_position_embeddings=64, rope_scaling=without).rope, [1, 0.0625, 0.0025, 0.00025])
    top_level = spec_of(rope_scaling={**without, "factor": None}, original_max_position_embeddings=64)
    assert top_level.rope.regime == "yarn, factor 4 over 64 original positions"


def test_llama3(spec_of):
    spec = spec_of(rope_scaling=LLAMA3)
    # wavelengths 6, 63, 628, 6283 against the bounds 16 and 64: kept, blended, divided, divided
    assert_table(spec.rope, [1, 0.01304226, 0.00125, 0.000125])
    assert spec.max_context == 256


def test_longrope_is_settled_by_max_model_len(spec_of):
    short, long = [1, 0.1, 0.005, 0.00025], [1, 0.05, 0.002, 0.0001]
    assert_table(spec_of(64, rope_scaling=LONGROPE).rope, short)
    assert_table(spec_of(65, rope_scaling=LONGROPE).rope, long)
    unlimited = spec_of(rope_scaling=LONGROPE)
    assert_table(unlimited.rope, long)
    assert "long_factor" in unlimited.rope.regime
    assert unlimited.max_context == 256


def test_longrope_attention_factor(spec_of):
    assert spec_of(64, rope_scaling=LONGROPE).rope.attention_scaling == pytest.approx(1.15470054)  # 256 / 64
    explicit = spec_of(rope_scaling={**LONGROPE, "attention_factor": 1.25, "factor": 8})
    assert explicit.rope.attention_scaling == 1.25
    assert spec_of(rope_scaling={**LONGROPE, "factor": 1.0}).rope.attention_scaling == 1.0


SEVEN_SPELLINGS = [
    {},
    {"rope_scaling": None},
    {"rope_scaling": {}},
    {"rope_scaling": {"type": "default"}},
    {"rope_scaling": {"rope_type": None}},
    {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
]


@pytest.mark.parametrize("spelling", SEVEN_SPELLINGS)
def test_seven_spellings_of_no_scaling_give_one_table(spec_of, spelling):
    theta = {} if "rope_parameters" in spelling else {"rope_theta": 500000.0}
    spec = spec_of(**theta, **spelling)
    plain = spec_of(rope_theta=500000.0)
    np.testing.assert_array_equal(spec.rope.inv_freq, plain.rope.inv_freq)
    assert (spec.rope.attention_scaling, spec.rope.rope_type) == (1.0, "default")
    has_unknown_key = "mrope_section" in str(spelling)
    assert len(spec.warnings) == has_unknown_key
    assert all("mrope_section" in warning for warning in spec.warnings)


def test_all_unknown_keys_share_one_warning(spec_of):
    (warning,) = spec_of(rope_scaling={**YARN, "finetuned": True, "zeta": 3, "truncate": None}).warnings
    assert "config.json" in warning and "finetuned, zeta" in warning and "truncate" not in warning


def test_old_and_new_spelling_give_the_same_bits(spec_of):
    old = spec_of(rope_theta=500000.0, rope_scaling={**LLAMA3, "type": "llama3"})
    new = spec_of(rope_parameters={**LLAMA3, "rope_theta": 500000.0})
    both = spec_of(rope_theta=500000.0, rope_scaling=LLAMA3, rope_parameters={**LLAMA3, "rope_theta": 500000.0})
    for other in (new, both):
        np.testing.assert_array_equal(other.rope.inv_freq, old.rope.inv_freq)
        assert other.warnings == ()


def test_parameters_by_layer_type_must_agree(spec_of):
    same = {"full_attention": YARN, "sliding_attention": dict(YARN)}
    assert_table(spec_of(rope_parameters=same).rope, [1, 0.0625, 0.0025, 0.00025])
    assert_table(
        spec_of(rope_parameters={"full_attention": YARN, "sliding_attention": None}).rope, [1, 0.0625, 0.0025, 0.00025]
    )
    with pytest.raises(ConfigError, match=r"rope_parameters .* every layer type"):
        spec_of(rope_parameters={**same, "sliding_attention": {"rope_type": "default"}})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope_scaling": {"type": "mrope"}}, 'rope_type is "mrope", expected one of default, linear'),
        ({"rope_scaling": {"type": 3}}, "rope_type is 3, expected a string"),
        ({"rope_scaling": [1]}, "rope_scaling is .*, expected an object"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {"type": "dynamic", "factor": "2"}}, 'factor is "2", expected a number'),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "low_freq_factor is null"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor is 1.0, expected more than"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters.short_factor is missing, .* list of 4"),
        ({"rope_scaling": {**LONGROPE, "long_factor": [1, 2, 3]}}, "long_factor is .1, 2, 3., expected a list of 4"),
        ({"rope_scaling": {**LONGROPE, "long_factor": [1, 2, 0, 3]}}, "long_factor is a list of 4, expected"),
        ({"rope_scaling": {**LONGROPE, "long_factor": [1e-60, 2, 2, 3]}}, "finite frequencies"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, "factor is true"),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "factor is NaN"),
        ({"rope_scaling": {"type": "linear", "factor": float("inf")}}, "factor is Infinity"),
        ({"rope_scaling": {"type": "linear", "factor": 1e-9}}, "factor that keeps the context"),
        ({"rope_scaling": {**YARN, "beta_slow": -1}}, "beta_slow is -1"),
        ({"rope_scaling": {**YARN, "truncate": 1}}, "truncate is 1, expected true or false"),
        ({"rope_scaling": YARN, "rope_parameters": LLAMA3}, "expected the values of rope_parameters"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rope_theta": "1e4"}, "rope_theta is"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, expected 1"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "rope_parameters.partial_rotary_factor is 0.25"),
        ({"rope_interleaved": True}, "rope_interleaved is true"),
        ({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2}}, "head_dim is 2, expected more than 2"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(spec_of, keys, message):
    with pytest.raises(ConfigError, match=f"config.json: .*{message}"):
        spec_of(max_model_len=300, **keys)


@pytest.mark.parametrize("max_model_len", [0, -1, 1 << 40])
def test_max_model_len_is_checked(spec_of, max_model_len):
    with pytest.raises(ConfigError, match="max_model_len"):
        spec_of(max_model_len)
