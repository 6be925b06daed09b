"""Writes GGUF files for tests, the way llama.cpp's converter does, from the tiny checkpoints of tests/golden/models."""

import json
from pathlib import Path

import gguf
import numpy as np
import safetensors

MODELS = Path(__file__).parents[1] / "golden" / "models"

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def raw_tensors(directory):
    """Every tensor as (dtype, shape, bytes), read by the safetensors package's parser."""
    found = {}
    for path in sorted(Path(directory).glob("*.safetensors")):
        for name, info in safetensors.deserialize(path.read_bytes()):
            found[name] = (info["dtype"], tuple(info["shape"]), bytes(info["data"]))
    return found


def float_tensors(directory):
    """Every tensor widened exactly to float32."""
    arrays = {}
    for name, (dtype, shape, data) in raw_tensors(directory).items():
        if dtype == "BF16":
            values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[dtype]).astype(np.float32)
        arrays[name] = values.reshape(shape)
    return arrays


def gguf_name(name):
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{LAYER_NAMES[module]}.{kind}"


def interleave_halves(rows, num_heads):
    """llama.cpp's reordering of q and k rows: the two halves of each head become neighbours."""
    result = np.empty_like(rows)
    head_dim = len(rows) // num_heads
    for head in range(num_heads):
        for index in range(head_dim // 2):
            result[head * head_dim + 2 * index] = rows[head * head_dim + index]
            result[head * head_dim + 2 * index + 1] = rows[head * head_dim + head_dim // 2 + index]
    return result


def metadata(case, arch):
    """The metadata of a tiny checkpoint; None stands for an absent key."""
    config = json.loads((MODELS / case / "config.json").read_text())
    tokenizer = json.loads((MODELS / case / "tokenizer.json").read_text())
    settings = json.loads((MODELS / case / "tokenizer_config.json").read_text())
    tokens = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, 1)
    for token in tokenizer["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = 3 if token["special"] else 4
    for index in range(config["vocab_size"]):
        tokens.setdefault(index, f"[PAD{index}]")
        types.setdefault(index, 5)
    by_text = {text: index for index, text in tokens.items()}
    heads = config["num_attention_heads"]
    values = {
        "general.architecture": arch,
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{arch}.rope.freq_base": float(config.get("rope_theta", 10000.0)),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": {"llama": "gpt-2"}.get(arch, "qwen2"),
        "tokenizer.ggml.tokens": [tokens[index] for index in range(len(tokens))],
        "tokenizer.ggml.token_type": [types[index] for index in range(len(tokens))],
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge)
                                  for merge in tokenizer["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": by_text["<|im_end|>"],
        "tokenizer.ggml.bos_token_id": by_text["<|endoftext|>"],
        "tokenizer.ggml.padding_token_id": by_text["<|endoftext|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": settings.get("chat_template"),
    }  # fmt: skip
    if config.get("head_dim", config["hidden_size"] // heads) * heads != config["hidden_size"]:
        values[f"{arch}.attention.key_length"] = config["head_dim"]
        values[f"{arch}.attention.value_length"] = config["head_dim"]
    return values


def stored_tensors(case, arch):
    """The tensors of a tiny checkpoint under llama.cpp's names, rows reordered as its converter does."""
    config = json.loads((MODELS / case / "config.json").read_text())
    stored = {}
    for name, values in float_tensors(MODELS / case).items():
        if arch == "llama" and ".q_proj." in name:
            values = interleave_halves(values, config["num_attention_heads"])
        if arch == "llama" and ".k_proj." in name:
            values = interleave_halves(values, config["num_key_value_heads"])
        stored[gguf_name(name)] = values
    return stored


def write_gguf(path, values, tensors, quantization="F32"):
    """Write metadata and tensors; matrices are stored as `quantization` where their rows allow it.

    A tensor given as (raw bytes, type) is stored as it is.
    """
    writer = gguf.GGUFWriter(path, values["general.architecture"])
    for key, value in values.items():
        if key == "general.architecture" or value is None:
            continue
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            raw, kind = tensor
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
        elif tensor.ndim == 1 or tensor.shape[1] % 32 or quantization == "F32":
            writer.add_tensor(name, tensor)
        else:
            kind = gguf.GGMLQuantizationType[quantization]
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_case(path, case, arch, quantization="F32", **changes):
    """Write a tiny checkpoint; `changes` replace metadata, with "__" for "." in their names."""
    values = metadata(case, arch) | {key.replace("__", "."): value for key, value in changes.items()}
    return write_gguf(path, values, stored_tensors(case, arch), quantization)
