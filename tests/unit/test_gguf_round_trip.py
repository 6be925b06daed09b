"""Checkpoints taken to GGUF and back: weights bit by bit, configuration, token ids."""

import json

import gguf
import numpy as np
import pytest
from gguf_builder import (
    MODELS,
    float_tensors,
    interleave_halves,
    metadata,
    raw_tensors,
    stored_tensors,
    write_case,
    write_gguf,
)
from tokenizers import Tokenizer

from nanovllm.checkpoint.gguf import convert_gguf
from nanovllm.checkpoint.gguf_config import row_order
from nanovllm.errors import CheckpointError

CASES = [
    ("llama-f32", "llama", "gpt-2"),
    ("llama-bias", "llama", "gpt-2"),
    ("llama-odd", "llama", "gpt-2"),
    ("qwen2-bf16-tied", "qwen2", "qwen2"),
    ("qwen3-bf16", "qwen3", "qwen2"),
    ("qwen3-sharded", "qwen3", "qwen2"),
]


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("case", "arch", "tag"), CASES)
def test_tensors_come_back_bit_equal(tmp_path, case, arch, tag):
    path = write_case(tmp_path / "model.gguf", case, arch, tokenizer__ggml__pre=tag)
    assert convert_gguf(path, tmp_path / "out", progress=False) == tmp_path / "out"

    found, original = raw_tensors(tmp_path / "out"), float_tensors(MODELS / case)
    assert found.keys() == original.keys()
    for name, values in original.items():
        assert found[name] == ("F32", values.shape, values.tobytes()), name


@pytest.mark.parametrize(("case", "arch", "tag"), CASES)
def test_config_says_the_same(tmp_path, case, arch, tag):
    path = write_case(tmp_path / "model.gguf", case, arch, tokenizer__ggml__pre=tag)
    convert_gguf(path, tmp_path / "out", progress=False)

    found, original = read_json(tmp_path / "out" / "config.json"), read_json(MODELS / case / "config.json")
    # A GGUF file has no word for the window that Qwen's configurations carry and do not use.
    ignored = {"torch_dtype", "transformers_version", "sliding_window", "max_window_layers", "bos_token_id"}
    different = {key for key in original.keys() - ignored if found.get(key) != original[key]}
    # An absent rope_scaling means the same as null, and a head_dim that follows from the sizes may be left out.
    assert {key for key in different if original[key] is not None} <= {"head_dim"}
    if "head_dim" in different:
        assert original["head_dim"] * original["num_attention_heads"] == original["hidden_size"]


@pytest.mark.parametrize(
    ("case", "arch", "tag"),
    [*CASES, ("llama-f16-linear", "llama", "smollm"), ("llama-bf16-llama3rope", "llama", "llama-bpe")],
)
def test_texts_get_the_recorded_ids(tmp_path, case, arch, tag):
    # Absent, so that the default of the pre-tokenizer decides, as in the original tokenizer.json.
    changes = {"tokenizer__ggml__pre": tag, "tokenizer__ggml__add_bos_token": None}
    path = write_case(tmp_path / "model.gguf", case, arch, **changes)
    convert_gguf(path, tmp_path / "out", progress=False)

    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    expected = read_json(MODELS / case / "expected.json")["text"]["encode"]
    assert len(expected) > 5
    for row in expected:
        assert tokenizer.encode(row["text"], add_special_tokens=False).ids == row["ids"]
        assert tokenizer.encode(row["text"]).ids == row["ids_add_special_tokens"]
        assert tokenizer.decode(row["ids_add_special_tokens"], skip_special_tokens=False) == row["decoded"]
        assert tokenizer.decode(row["ids_add_special_tokens"], skip_special_tokens=True) == row["decoded_skip_special"]


def test_filler_tokens_are_left_out(tmp_path):
    path = write_case(tmp_path / "model.gguf", "llama-bias", "llama")
    convert_gguf(path, tmp_path / "out", progress=False)
    assert Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).get_vocab_size() == 487
    assert read_json(tmp_path / "out" / "config.json")["vocab_size"] == 512


def test_row_order_undoes_the_interleaving_of_each_head():
    # Two heads of four rows: llama.cpp stores the rows 0 2 1 3 and 4 6 5 7.
    assert interleave_halves(np.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert row_order(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    # One head of six rows: stored 0 3 1 4 2 5; row 1 is found at place 2, row 3 at place 1.
    assert interleave_halves(np.arange(6), 1).tolist() == [0, 3, 1, 4, 2, 5]
    assert row_order(6, 1).tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_matrices_are_dequantized_exactly(tmp_path, kind, monkeypatch):
    # Pieces of three rows, so that they cut through heads.
    monkeypatch.setattr("nanovllm.checkpoint.gguf._CHUNK_ITEMS", 200)
    case, arch = "qwen2-bf16-tied", "qwen2"
    path = write_case(tmp_path / "model.gguf", case, arch, kind)
    convert_gguf(path, tmp_path / "out", dtype="float32", progress=False)

    found = float_tensors(tmp_path / "out")
    for name, values in float_tensors(MODELS / case).items():
        if values.ndim == 2:
            number = gguf.GGMLQuantizationType[kind]
            values = gguf.dequantize(gguf.quantize(values, number), number)
        assert np.array_equal(found[name], values), name


def test_quantized_llama_rows_are_reordered_after_storage(tmp_path, monkeypatch):
    monkeypatch.setattr("nanovllm.checkpoint.gguf._CHUNK_ITEMS", 200)
    path = write_case(tmp_path / "model.gguf", "llama-f32", "llama", "Q8_0")
    convert_gguf(path, tmp_path / "out", dtype="float32", progress=False)
    found, original = float_tensors(tmp_path / "out"), float_tensors(MODELS / "llama-f32")
    for name, values in original.items():
        # Q8_0 keeps each number to half a step of its block, 1/254 of the block's largest one, and rounds the step.
        assert np.abs(found[name] - values).max() <= np.abs(values).max() / 240, name


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_dequantized_exactly(tmp_path, kind):
    # A one-layer model with rows of 256, one block: the package cannot quantize these types, so blocks are random bytes
    # with scales that keep the numbers finite.
    generator = np.random.default_rng(7)
    _, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    scales = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[kind]

    def blocks(num_rows):
        raw = generator.integers(0, 256, (num_rows, block_bytes), dtype=np.uint8)
        for place in scales:
            raw[:, place : place + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
        return raw, kind

    values = metadata("llama-f32", "llama") | {
        "llama.block_count": 1,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 256,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 4,
    }
    tensors = {"token_embd.weight": blocks(500), "output_norm.weight": np.ones(256, np.float32)}
    tensors |= {f"blk.0.{name}.weight": np.ones(256, np.float32) for name in ("attn_norm", "ffn_norm")}
    linears = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    tensors |= {f"blk.0.{name}.weight": blocks(256) for name in linears}
    path = write_gguf(tmp_path / "model.gguf", values, tensors)
    convert_gguf(path, tmp_path / "out", dtype="float32", progress=False)

    found = float_tensors(tmp_path / "out")
    number = gguf.GGMLQuantizationType[kind]
    for source, target in (("token_embd", "embed_tokens"), ("blk.0.ffn_down", "layers.0.mlp.down_proj")):
        expected = gguf.dequantize(tensors[f"{source}.weight"][0], number)
        assert np.array_equal(found[f"model.{target}.weight"], expected)
    q_rows = gguf.dequantize(tensors["blk.0.attn_q.weight"][0], number)
    assert np.array_equal(interleave_halves(found["model.layers.0.self_attn.q_proj.weight"], 4), q_rows)


@pytest.mark.parametrize(
    ("kind", "dtype", "stored", "torch_dtype"),
    [
        ("F32", "auto", "F32", "float32"),
        ("F16", "auto", "F16", "float16"),
        ("BF16", "auto", "BF16", "bfloat16"),
        ("Q8_0", "auto", "BF16", "bfloat16"),
        ("BF16", "float32", "F32", "float32"),
        ("F32", "float16", "F16", "float16"),
    ],
)
def test_dtype_choice(tmp_path, kind, dtype, stored, torch_dtype):
    path = write_case(tmp_path / "model.gguf", "qwen2-bf16-tied", "qwen2", kind)
    convert_gguf(path, tmp_path / "out", dtype=dtype, progress=False)
    # Norms and biases are F32 in the file; these came from bfloat16 and lose nothing in it.
    found = raw_tensors(tmp_path / "out")
    assert found["model.layers.0.mlp.up_proj.weight"][0] == stored
    assert read_json(tmp_path / "out" / "config.json")["torch_dtype"] == torch_dtype
    if stored == "BF16" and kind == "BF16":
        assert found == raw_tensors(MODELS / "qwen2-bf16-tied")


def test_auto_keeps_a_norm_that_would_not_survive_rounding(tmp_path):
    tensors = stored_tensors("qwen2-bf16-tied", "qwen2")
    tensors["output_norm.weight"] = tensors["output_norm.weight"] + np.float32(2**-20)
    path = write_gguf(tmp_path / "model.gguf", metadata("qwen2-bf16-tied", "qwen2"), tensors, "BF16")
    convert_gguf(path, tmp_path / "out", progress=False)
    found = raw_tensors(tmp_path / "out")
    assert found["model.norm.weight"] == ("F32", (64,), tensors["output_norm.weight"].tobytes())
    assert found["model.layers.0.input_layernorm.weight"][0] == "BF16"


def test_numbers_beyond_float16_are_refused_by_tensor_name(tmp_path):
    tensors = stored_tensors("llama-f32", "llama")
    tensors["blk.1.ffn_up.weight"][3, 5] = 70000
    path = write_gguf(tmp_path / "model.gguf", metadata("llama-f32", "llama"), tensors)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*too large for F16"):
        convert_gguf(path, tmp_path / "out", dtype="float16", progress=False)
    assert not (tmp_path / "out").exists()


ROPE_CASES = [
    (
        "llama-f16-linear",
        {"type": "linear", "factor": 4.0},
        {"rope_type": "linear", "factor": 4.0},
    ),
    ("llama-f32", {"factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
    ("llama-f32", {"type": "none", "factor": 2.0}, None),
    ("llama-f32", {"type": "linear", "factor": 1.0}, None),
    (
        "llama-f32",
        {"type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_beta_fast": 16.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0},
    ),
]


@pytest.mark.parametrize(("case", "keys", "expected"), ROPE_CASES)
def test_rope_scaling_metadata(tmp_path, case, keys, expected):
    changes = {f"llama.rope.scaling.{key}": value for key, value in keys.items()}
    path = write_case(tmp_path / "model.gguf", case, "llama", **changes)
    convert_gguf(path, tmp_path / "out", progress=False)
    assert read_json(tmp_path / "out" / "config.json")["rope_scaling"] == expected


def test_stored_llama3_divisors_become_their_parameters(tmp_path):
    case = "llama-bf16-llama3rope"
    original = read_json(MODELS / case / "config.json")
    inv_freq = np.array(read_json(MODELS / case / "expected.json")["inv_freq_at_start"])
    head_dim = original["hidden_size"] // original["num_attention_heads"]
    unscaled = original["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
    tensors = stored_tensors(case, "llama") | {"rope_freqs.weight": (unscaled / inv_freq).astype(np.float32)}
    path = write_gguf(tmp_path / "model.gguf", metadata(case, "llama"), tensors)
    convert_gguf(path, tmp_path / "out", progress=False)
    assert "rope_freqs" not in str(raw_tensors(tmp_path / "out").keys())
    found = read_json(tmp_path / "out" / "config.json")["rope_scaling"]
    assert found.pop("factor") == pytest.approx(8.0, rel=1e-6)
    assert found == {key: value for key, value in original["rope_scaling"].items() if key != "factor"}


def test_sliding_window_makes_a_mistral(tmp_path):
    path = write_case(tmp_path / "model.gguf", "llama-f32", "llama", llama__attention__sliding_window=24)
    convert_gguf(path, tmp_path / "out", progress=False)
    config = read_json(tmp_path / "out" / "config.json")
    assert (config["model_type"], config["architectures"]) == ("mistral", ["MistralForCausalLM"])
    assert config["sliding_window"] == 24
