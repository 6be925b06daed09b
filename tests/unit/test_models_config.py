"""config.json and generation_config.json become a ModelSpec, or one sentence that names file, key and cure."""

import json
import random

import pytest

from nanovllm.errors import ConfigError, UsageError
from nanovllm.models import SHEETS, TensorSlot, load_spec

BASE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "eos_token_id": 2,
}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
ABSENT = object()


@pytest.fixture
def spec_of(tmp_path):
    def build(model_type="llama", generation=None, **keys):
        config = {**BASE, "model_type": model_type, "architectures": [ARCHITECTURES.get(model_type, "X")], **keys}
        config = {key: value for key, value in config.items() if value is not ABSENT}
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
        return load_spec(tmp_path)

    return build


def shapes(spec):
    return {slot.name: slot.shape for slot in spec.slots()}


def test_all_slots_of_a_llama_in_order(spec_of):
    spec = spec_of(num_hidden_layers=1)
    assert spec.slots() == [
        TensorSlot("model.embed_tokens.weight", (32, 16)),
        TensorSlot("model.layers.0.input_layernorm.weight", (16,)),
        TensorSlot("model.layers.0.self_attn.q_proj.weight", (16, 16)),
        TensorSlot("model.layers.0.self_attn.k_proj.weight", (8, 16)),
        TensorSlot("model.layers.0.self_attn.v_proj.weight", (8, 16)),
        TensorSlot("model.layers.0.self_attn.o_proj.weight", (16, 16)),
        TensorSlot("model.layers.0.post_attention_layernorm.weight", (16,)),
        TensorSlot("model.layers.0.mlp.gate_proj.weight", (24, 16)),
        TensorSlot("model.layers.0.mlp.up_proj.weight", (24, 16)),
        TensorSlot("model.layers.0.mlp.down_proj.weight", (16, 24)),
        TensorSlot("model.norm.weight", (16,)),
        TensorSlot("lm_head.weight", (32, 16)),
    ]
    assert spec.num_parameters == 512 + 16 + 256 + 128 + 128 + 256 + 16 + 3 * 384 + 16 + 512
    assert spec.warnings == ()


@pytest.mark.parametrize(
    ("model_type", "keys", "biased"),
    [
        ("llama", {}, set()),
        ("llama", {"attention_bias": True}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("llama", {"mlp_bias": True}, {"gate_proj", "up_proj", "down_proj"}),
        ("mistral", {}, set()),
        ("qwen2", {}, {"q_proj", "k_proj", "v_proj"}),
        ("qwen3", {}, set()),
        ("qwen3", {"attention_bias": True}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
    ],
)
def test_biases_of_each_family(spec_of, model_type, keys, biased):
    names = shapes(spec_of(model_type, **keys))
    assert {name.split(".")[-2] for name in names if name.endswith(".bias")} == biased


def test_qwen3_norms_the_heads(spec_of):
    names = shapes(spec_of("qwen3", head_dim=6))
    assert names["model.layers.1.self_attn.q_norm.weight"] == names["model.layers.1.self_attn.k_norm.weight"] == (6,)
    assert not any("q_norm" in name for name in shapes(spec_of("qwen2")))


@pytest.mark.parametrize(
    ("keys", "head_dim", "q_rows", "kv_rows"),
    [
        ({"hidden_size": 60, "num_attention_heads": 8, "head_dim": 8}, 8, 64, 16),
        ({"hidden_size": 64, "num_attention_heads": 4, "head_dim": 24}, 24, 96, 48),
        ({"hidden_size": 64, "num_attention_heads": 4, "head_dim": None}, 16, 64, 32),
        ({"hidden_size": 64, "num_attention_heads": 4, "head_dim": ABSENT}, 16, 64, 32),
        ({"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": None}, 16, 64, 64),
        ({"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": ABSENT}, 16, 64, 64),
    ],
)
def test_head_sizes(spec_of, keys, head_dim, q_rows, kv_rows):
    spec = spec_of(**keys)
    names = shapes(spec)
    assert spec.head_dim == head_dim
    assert names["model.layers.0.self_attn.q_proj.weight"] == (q_rows, spec.hidden_size)
    assert names["model.layers.0.self_attn.v_proj.weight"] == (kv_rows, spec.hidden_size)
    assert names["model.layers.0.self_attn.o_proj.weight"] == (spec.hidden_size, q_rows)


@pytest.mark.parametrize("head_dim", [None, ABSENT])
def test_indivisible_hidden_size_without_head_dim_names_both_numbers(spec_of, head_dim):
    with pytest.raises(ConfigError, match=r"head_dim .*hidden_size 60 .*num_attention_heads 8"):
        spec_of(hidden_size=60, num_attention_heads=8, head_dim=head_dim)


def test_qwen3_head_dim_defaults_to_128_only_when_absent(spec_of):
    assert spec_of("qwen3", head_dim=ABSENT).head_dim == 128
    assert spec_of("qwen3", head_dim=None).head_dim == 4


@pytest.mark.parametrize("model_type", sorted(SHEETS))
def test_tied_embeddings_and_where_the_answer_comes_from(spec_of, model_type):
    spec = spec_of(model_type)
    assert (spec.tie_word_embeddings, spec.tie_origin) == (False, f"default of {model_type}")
    assert spec.slots()[-1] == TensorSlot("lm_head.weight", (32, 16), optional=False)
    untied_parameters = spec.num_parameters
    spec = spec_of(model_type, tie_word_embeddings=True)
    assert (spec.tie_word_embeddings, spec.tie_origin) == (True, "config.json")
    assert spec.slots()[-1] == TensorSlot("lm_head.weight", (32, 16), optional=True)
    assert spec.num_parameters == untied_parameters - 512
    assert spec_of(model_type, tie_word_embeddings=False).tie_origin == "config.json"


SLIDING = {"use_sliding_window": True, "sliding_window": 5, "num_hidden_layers": 4}


@pytest.mark.parametrize(
    ("model_type", "keys", "windows"),
    [
        ("llama", {}, (0, 0)),
        ("mistral", {"sliding_window": 7}, (7, 7)),
        ("mistral", {"sliding_window": None}, (0, 0)),
        ("mistral", {}, (4096, 4096)),
        ("qwen2", {"sliding_window": 5}, (0, 0)),
        ("qwen2", {**SLIDING, "max_window_layers": 1}, (0, 5, 5, 5)),
        ("qwen3", {**SLIDING, "max_window_layers": 3}, (0, 0, 0, 5)),
        ("qwen3", {**SLIDING, "max_window_layers": 0, "sliding_window": None}, (0, 0, 0, 0)),
        ("qwen2", SLIDING, (0, 0, 0, 0)),  # max_window_layers is 28 by default
        (
            "qwen2",
            {**SLIDING, "max_window_layers": 0, "layer_types": ["sliding_attention", "full_attention"] * 2},
            (5, 0, 5, 0),
        ),
        ("qwen3", {"layer_types": ["full_attention"] * 2}, (0, 0)),
    ],
)
def test_sliding_windows(spec_of, model_type, keys, windows):
    assert spec_of(model_type, **keys).sliding_windows == windows


@pytest.mark.parametrize(
    ("config_eos", "generation", "expected"),
    [
        (2, None, (2,)),
        (2, {"eos_token_id": [2, 7]}, (2, 7)),
        (2, {"eos_token_id": 7}, (2, 7)),
        ([3, 4], {}, (3, 4)),
        (None, {"eos_token_id": [7]}, (7,)),
        (ABSENT, {"eos_token_id": [7]}, (7,)),
        (None, None, ()),
        (None, {"eos_token_id": None}, ()),
        (2, {"eos_token_id": None}, (2,)),
    ],
)
def test_eos_ids_are_the_union_of_both_files(spec_of, config_eos, generation, expected):
    spec = spec_of(generation=generation, eos_token_id=config_eos)
    assert spec.eos_token_ids == expected
    assert spec.warnings == ()


def test_eos_that_neither_file_mentions_is_the_family_default(spec_of):
    spec = spec_of(eos_token_id=ABSENT)
    assert spec.eos_token_ids == (2,)
    assert "eos_token_id is missing, 2 is used" in spec.warnings[0]
    assert spec_of("qwen2", eos_token_id=ABSENT).eos_token_ids == ()


def test_ids_outside_the_vocabulary_are_dropped(spec_of):
    spec = spec_of(eos_token_id=[2, 99], pad_token_id=-1, bos_token_id=1)
    assert (spec.eos_token_ids, spec.pad_token_id, spec.bos_token_id) == ((2,), None, 1)
    assert len(spec.warnings) == 1 and "99" in spec.warnings[0]


def test_bos_falls_back_to_the_generation_config(spec_of):
    assert spec_of(bos_token_id=None, generation={"bos_token_id": 5}).bos_token_id == 5
    assert spec_of(bos_token_id=0, generation={"bos_token_id": 5}).bos_token_id == 0


def test_sampling_defaults(spec_of):
    generation = {
        "do_sample": False,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": None,
        "min_p": 0,
        "typical_p": 1.0,
        "repetition_penalty": 1.1,
        "max_new_tokens": 7,
        "transformers_version": "4.44.0",
    }
    spec = spec_of(generation=generation)
    assert spec.generation_defaults == {
        "temperature": 0.6,
        "top_k": 20,
        "min_p": 0.0,
        "typical_p": 1.0,
        "repetition_penalty": 1.1,
    }
    assert spec_of(generation={"top_k": -1}).generation_defaults == {"top_k": 0}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float16"}, "float16"),
        ({"dtype": "float32", "torch_dtype": "float16"}, "float32"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"torch_dtype": "auto"}, None),
        ({}, None),
    ],
)
def test_dtype_in_both_spellings(spec_of, keys, expected):
    spec = spec_of(**keys)
    assert spec.torch_dtype == expected
    assert spec.warnings == ()


def test_keys_that_nobody_reads_are_named_once(spec_of):
    spec = spec_of(zeta=1, logit_scale=2.0, use_cache=True, _name_or_path="x", label2id={}, unset=None)
    (warning,) = spec.warnings
    assert "logit_scale, zeta" in warning
    assert all(word not in warning for word in ("use_cache", "_name_or_path", "label2id", "unset"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "gemma"}, 'model_type is "gemma", expected one of llama, mistral, qwen2, qwen3'),
        ({"model_type": ABSENT}, "model_type is missing"),
        ({"model_type": 3}, "model_type is 3"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification.*LlamaForCausalLM"),
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is .*, expected a list of strings"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config .*gptq"),
        ({"quantization_config": {}}, "quantization_config"),
        ({"hidden_size": ABSENT}, "hidden_size is missing"),
        ({"hidden_size": True}, "hidden_size is true, expected an integer"),
        ({"hidden_size": 16.0}, "hidden_size is 16.0"),
        ({"hidden_size": "16"}, 'hidden_size is "16"'),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": 10**60}, "hidden_size is 1000"),
        ({"hidden_size": 10**400}, "hidden_size is an integer of more than 60 digits"),
        ({"vocab_size": 1 << 25}, "vocab_size"),
        ({"num_hidden_layers": 1001}, "num_hidden_layers"),
        ({"num_hidden_layers": [1, [2]]}, "num_hidden_layers is a list of 2"),
        ({"intermediate_size": -1}, "intermediate_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, expected a divisor of num_attention_heads, 4"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"head_dim": 5}, "head_dim is 5, expected an even number"),
        ({"head_dim": 4098}, "head_dim"),
        ({"hidden_size": 12}, "head_dim is missing, expected an even number .*is 3"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is NaN"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected true or false"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"eos_token_id": [2, None]}, "eos_token_id"),
        ({"bos_token_id": 1.5}, "bos_token_id"),
        ({"dtype": 5}, "dtype is 5"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(spec_of, keys, message):
    with pytest.raises(ConfigError, match=f"config.json: .*{message}"):
        spec_of(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layer_types": ["full_attention"]}, "one entry for each of 2 layers"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention.* .layer 1."),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window is off"),
        ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window is 0"),
    ],
)
def test_impossible_windows_are_refused(spec_of, keys, message):
    with pytest.raises(ConfigError, match=message):
        spec_of("qwen2", **keys)


@pytest.mark.parametrize("values", [{"temperature": -1}, {"top_p": 0}, {"top_k": 1.5}, {"repetition_penalty": "x"}])
def test_impossible_sampling_defaults_are_refused(spec_of, values):
    (key,) = values
    with pytest.raises(ConfigError, match=f"generation_config.json: {key}"):
        spec_of(generation=values)


def test_missing_or_damaged_files_are_named(tmp_path, spec_of):
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_spec(tmp_path)
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_spec(tmp_path)
    (tmp_path / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        spec_of()


def test_mutated_configs_give_a_spec_or_our_error(spec_of):
    rng = random.Random(5)
    pool = [None, True, -1, 0, 3, 1 << 40, 10**30, 0.5, float("nan"), float("inf"), -1e308, "", "yarn", "x" * 999]
    pool += [[], {}, [[]], [1, 2], ["sliding_attention", "full_attention"], {"rope_type": "yarn", "factor": 2}]
    pool += [{"rope_type": "dynamic", "factor": 1e6}, {"type": "llama3", "factor": 1e-30, "low_freq_factor": 1e-300}]
    keys = [*BASE, "head_dim", "rope_scaling", "rope_parameters", "rope_theta", "dtype", "layer_types", "bos_token_id"]
    keys += ["sliding_window", "use_sliding_window", "max_window_layers", "tie_word_embeddings", "quantization_config"]
    outcomes = {"spec": 0, "error": 0}
    for _ in range(500):
        mutations = {rng.choice(keys): rng.choice(pool) for _ in range(rng.randint(1, 2))}
        model_type = mutations.pop("model_type", rng.choice(sorted(SHEETS)))
        try:
            spec_of(model_type if isinstance(model_type, str) else "llama", **mutations).slots()
            outcomes["spec"] += 1
        except UsageError as error:
            assert len(str(error)) < 600
            outcomes["error"] += 1
    assert min(outcomes.values()) > 50
