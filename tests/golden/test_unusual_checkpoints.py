"""Checkpoints as people meet them: damaged ones are refused in one sentence, odd ones give the same tokens.

Oracle: the tokens and logits of the same checkpoint in its plain form, which other tests hold to recorded ones.
"""

import json

import numpy as np
import pytest
from job_bench import JobBench
from safetensors.numpy import load_file, save_file

from nanovllm import LLM

PROMPTS = ({"prompt": "Hello"}, {"prompt": "The rain in"})
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 269060552\n"


@pytest.fixture
def bench(tmp_path, capsys):
    return JobBench(tmp_path, capsys)


def texts(bench):
    assert bench.run(PROMPTS) == 0, bench.said
    return [line["text"] for line in bench.lines()]


def sentences(bench):
    """The lines on stderr that are about what is wrong."""
    return [line for line in bench.said.splitlines() if line.startswith("nanovllm run:")]


def test_a_git_lfs_pointer_is_refused_as_one(bench):
    (bench.model / "model.safetensors").write_text(POINTER)
    assert bench.run() == 2
    (sentence,) = sentences(bench)
    assert str(bench.model / "model.safetensors") in sentence
    assert "pointer" in sentence
    assert "Traceback" not in bench.said


def test_every_shard_that_is_missing_is_named_with_its_index(bench):
    bench.use("qwen3-sharded")
    index = json.loads((bench.model / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    for shard in shards[1:]:
        (bench.model / shard).unlink()
    assert len(shards) > 2
    assert bench.run() == 2
    (sentence,) = sentences(bench)
    assert "model.safetensors.index.json" in sentence
    assert all(shard in sentence for shard in shards[1:])
    assert shards[0] not in sentence


def rewrite(path, change):
    """Rewrite a safetensors file with a header that `change` makes of the old one; offsets stay."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(change(json.loads(data[8 : 8 + size]), len(data) - 8 - size)).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize("extra", ["null metadata", "zero bytes", "scalar", "file without tensors"])
def test_tensors_that_nobody_needs_change_nothing_and_are_named_once(bench, extra):
    expected = texts(bench)
    path = bench.model / "model.safetensors"
    if extra == "null metadata":
        rewrite(path, lambda header, end: {**header, "__metadata__": None})
    elif extra == "zero bytes":
        entry = {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]}
        rewrite(path, lambda header, end: {**header, "extra.nothing": entry})
    elif extra == "scalar":
        save_file({**load_file(path), "extra.scalar": np.array(1.5, np.float32)}, path)
    else:
        tensors = load_file(path)
        path.unlink()
        save_file(tensors, bench.model / "a.safetensors")
        empty = b"{}      "
        (bench.model / "b.safetensors").write_bytes(len(empty).to_bytes(8, "little") + empty)
        index = {"weight_map": dict.fromkeys(tensors, "a.safetensors")}
        (bench.model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert texts(bench) == expected
    warnings = [line for line in bench.said.splitlines() if "extra." in line]
    assert len(warnings) == (1 if extra in ("zero bytes", "scalar") else 0)


def test_a_missing_lm_head_names_tensor_key_and_cures(bench):
    path = bench.model / "model.safetensors"
    tensors = load_file(path)
    del tensors["lm_head.weight"]
    save_file(tensors, path)
    assert bench.run() == 2
    (sentence,) = sentences(bench)
    assert "lm_head.weight" in sentence
    assert "tie_word_embeddings" in sentence
    bench.change("config.json", {"tie_word_embeddings": True})
    assert bench.run() == 0
    assert bench.info()["tied_embeddings"] == "yes (config.json)"


def test_without_the_key_the_architecture_decides_whether_embeddings_are_tied_and_info_says_so(bench):
    bench.change("config.json", {}, without=["tie_word_embeddings"])
    assert bench.info()["tied_embeddings"] == "no (default of llama)"
    assert bench.run() == 0


def first_logits(bench):
    return LLM(bench.model, dtype="float32").top_logits("Hello", 20)


SPELLINGS = [
    {"rope_scaling": None},
    {"rope_scaling": {}},
    {"rope_scaling": {"type": "default"}},
    {"rope_scaling": {"rope_type": None}},
    {"rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
]


@pytest.mark.filterwarnings("ignore:.*mrope_section:UserWarning")
def test_no_rope_scaling_in_seven_spellings_gives_the_same_bits(bench):
    found = []
    for spelling in [{}, *SPELLINGS]:
        bench.use("llama-f32")
        bench.change("config.json", spelling, without=["rope_scaling"])
        found.append(first_logits(bench))
    assert found == [found[0]] * 7


def with_random_weights(bench, config):
    """Make a checkpoint of any sizes: hidden 60 or 64, and q, k, v, o as head_dim says."""
    bench.change("config.json", config)
    config = json.loads((bench.model / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"] or heads
    head_dim = config.get("head_dim") or hidden // heads
    shapes = {
        "model.embed_tokens.weight": (500, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (500, hidden),
    }
    for layer in ("model.layers.0.", "model.layers.1."):
        shapes |= {
            f"{layer}self_attn.q_proj.weight": (heads * head_dim, hidden),
            f"{layer}self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
            f"{layer}self_attn.v_proj.weight": (kv_heads * head_dim, hidden),
            f"{layer}self_attn.o_proj.weight": (hidden, heads * head_dim),
            f"{layer}mlp.gate_proj.weight": (176, hidden),
            f"{layer}mlp.up_proj.weight": (176, hidden),
            f"{layer}mlp.down_proj.weight": (hidden, 176),
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}post_attention_layernorm.weight": (hidden,),
        }
    rng = np.random.default_rng(4)
    tensors = {name: rng.standard_normal(shape, np.float32) * np.float32(0.1) for name, shape in shapes.items()}
    save_file(tensors, bench.model / "model.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": 60, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8},
        {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24},
        {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": None},
        {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": None},
    ],
)
def test_heads_of_any_size_are_served(bench, config):
    with_random_weights(bench, config)
    assert bench.run(PROMPTS) == 0, bench.said
    assert bench.errors() == [None, None]


def test_heads_that_do_not_divide_the_width_are_refused_with_both_numbers(bench):
    bench.change("config.json", {"hidden_size": 60, "num_attention_heads": 8})
    assert bench.run() == 2
    (sentence,) = sentences(bench)
    assert "60" in sentence
    assert "8" in sentence


def test_a_model_without_eos_runs_to_its_length_and_info_says_so(bench):
    bench.change("config.json", {"eos_token_id": None})
    bench.change("generation_config.json", {"eos_token_id": None})
    assert "none" in str(bench.info()["eos_token_ids"]).lower()
    assert bench.run(PROMPTS) == 0
    assert [line["finish_reason"] for line in bench.lines()] == ["length", "length"]


def test_settings_of_the_model_hold_unless_the_job_says_otherwise_and_a_switch_ignores_them(bench):
    bench.change(
        "generation_config.json",
        {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1, "num_beams": 1, "use_cache": True},
    )
    assert bench.run(PROMPTS) == 0
    sampling = bench.manifest()["sampling"]
    assert sampling["temperature"] == {"value": 0.0, "origin": "job"}
    assert sampling["top_k"] == {"value": 20, "origin": "model"}
    assert sampling["repetition_penalty"] == {"value": 1.1, "origin": "model"}
    assert sampling["presence_penalty"] == {"value": 0.0, "origin": "built-in"}
    penalized = bench.results()
    assert bench.run(PROMPTS, engine=", generation_config: none") == 0
    assert bench.manifest()["sampling"]["repetition_penalty"] == {"value": 1.0, "origin": "built-in"}
    plain = bench.results()
    bench.change("generation_config.json", {}, without=["temperature", "top_k", "top_p", "repetition_penalty"])
    assert bench.run(PROMPTS) == 0
    assert bench.results() == plain
    assert bench.run(PROMPTS, sampling="temperature: 0, repetition_penalty: 1.1") == 0
    assert bench.results() == penalized
