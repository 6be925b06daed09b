"""What a GGUF file's metadata and tensor names mean in Hugging Face's terms: config.json and a plan for each tensor.

Owns the tables of architectures and names. It must not know how tensors are stored or written, nor the tokenizer.
Whatever is not understood is refused by name, since leaving it out would give a model that talks nonsense.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from nanovllm.checkpoint.files import quote
from nanovllm.checkpoint.gguf_file import GgufFile
from nanovllm.errors import CheckpointError

#: GGUF architecture to model_type. llama.cpp calls Mistral "llama" as well; without a window the two are the same.
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

#: Metadata (after the architecture's name) that changes the arithmetic in ways these models do not have, and the
#: value that leaves it alone.
_NEUTRAL_VALUES = {
    "expert_count": 0,
    "logit_scale": 1,
    "embedding_scale": 1,
    "residual_scale": 1,
    "attention.scale": None,
    "attention.clamp_kqv": 0,
    "attention.sliding_window_pattern": None,
    "attn_logit_softcapping": 0,
    "final_logit_softcapping": 0,
    "rope.dimension_sections": None,
}
_ROPE_KEYS = ("type", "factor", "original_context_length", "finetuned", "yarn_beta_fast", "yarn_beta_slow")
_NEUTRAL_ROPE_VALUES = {"attn_factor": 1, "yarn_attn_factor": 1, "yarn_ext_factor": 1, "yarn_log_multiplier": 0}

ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True)
class TensorPlan:
    """Where one tensor of the GGUF file goes.

    Attributes:
        target: its name in the checkpoint.
        shape: what it must have.
        num_permuted_heads: heads whose rows are stored interleaved for llama.cpp's rotation; 0 for none.
    """

    target: str
    shape: tuple[int, ...]
    num_permuted_heads: int = 0


class ModelReader:
    """Reads one file's model description.

    Attributes:
        config: contents of config.json, still without torch_dtype and token ids.
        plans: `TensorPlan` by GGUF tensor name, for every tensor to convert, in layer order.

    Raises:
        CheckpointError: naming the key or tensor that is missing, unknown, or does not fit.
    """

    def __init__(self, gguf: GgufFile):
        self.gguf = gguf
        self.arch = gguf.get("general.architecture", str)
        if self.arch not in ARCHITECTURES:
            raise CheckpointError(
                f"{gguf.path} holds architecture {quote(self.arch)}, expected one of {', '.join(ARCHITECTURES)}"
            )
        self._refuse_unsupported()
        self._read_sizes()
        self.attention_bias = self.arch == "qwen2" or self._layer_0_has("attn_q", "attn_k", "attn_v", "attn_output")
        self.mlp_bias = self.arch == "llama" and self._layer_0_has("ffn_gate", "ffn_up", "ffn_down")
        self.config = self._make_config()
        self.plans = self._make_plans()
        self._check_tensors()

    def _get(self, key: str, kind: type, *default):
        return self.gguf.get(f"{self.arch}.{key}", kind, *default)

    def _size(self, key: str, *default) -> int:
        """Read a positive integer; an array (one value for each layer) must repeat one value."""
        name = f"{self.arch}.{key}"
        values = self.gguf.metadata.get(name)
        value = values[0] if isinstance(values, list) and len(set(values)) == 1 else self._get(key, int, *default)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise CheckpointError(f"{self.gguf.path}: {name!r} is {quote(values)}, expected a positive integer")
        return value

    def _number(self, key: str, *default, least: float = 0.0) -> float:
        value = self._get(key, float, *default)
        if not least <= value < math.inf:
            raise CheckpointError(
                f"{self.gguf.path}: '{self.arch}.{key}' is {value}, expected a finite number of at least {least}"
            )
        return value

    def _layer_0_has(self, *kinds: str) -> bool:
        return any(f"blk.0.{kind}.bias" in self.gguf.tensors for kind in kinds)

    def _refuse_unsupported(self) -> None:
        parts = self.gguf.metadata.get("split.count", 0)
        if parts not in (0, 1):
            raise CheckpointError(
                f"{self.gguf.path} is one of {quote(parts)} parts (split.count); join them with "
                "`llama-gguf-split --merge`"
            )
        for key, neutral in _NEUTRAL_VALUES.items():
            name = f"{self.arch}.{key}"
            value = self.gguf.metadata.get(name, neutral)
            if value != neutral:
                raise CheckpointError(
                    f"{self.gguf.path}: {name!r} is {quote(value)}; models of architecture {self.arch} with this "
                    "option are not supported"
                )

    def _read_sizes(self) -> None:
        self.hidden_size = self._size("embedding_length")
        self.num_layers = self._size("block_count")
        self.num_heads = self._size("attention.head_count")
        self.num_kv_heads = self._size("attention.head_count_kv", self.num_heads)
        self.intermediate_size = self._size("feed_forward_length")
        self.head_dim = self._size("attention.key_length", max(self.hidden_size // self.num_heads, 1))
        for key in ("attention.value_length", "rope.dimension_count"):
            if self._size(key, self.head_dim) != self.head_dim:
                raise CheckpointError(
                    f"{self.gguf.path}: '{self.arch}.{key}' is {self._size(key)}, expected the head size "
                    f"{self.head_dim}; partial rotation and differing key and value sizes are not supported"
                )
        if self.num_layers > len(self.gguf.tensors):
            raise CheckpointError(
                f"{self.gguf.path}: '{self.arch}.block_count' is {self.num_layers}, but there are only "
                f"{len(self.gguf.tensors)} tensors; the file is incomplete, get it again"
            )
        if "token_embd.weight" not in self.gguf.tensors:
            raise CheckpointError(f"{self.gguf.path} lacks tensor 'token_embd.weight'; it holds no whole model")
        self.rope_theta = self._number("rope.freq_base", 10000.0, least=1.0)
        self.vocab_size = self.gguf.tensors["token_embd.weight"].shape[0]

    def _make_config(self) -> dict:
        window = self._get("attention.sliding_window", int, 0) and self._size("attention.sliding_window")
        model_type = ARCHITECTURES[self.arch]
        if model_type == "llama" and window:
            model_type = "mistral"
            if self.attention_bias or self.mlp_bias:
                raise CheckpointError(
                    f"{self.gguf.path}: '{self.arch}.attention.sliding_window' is {window} in a model with biases; "
                    "that combination is not supported"
                )
        config = {
            "architectures": [_CLASSES[model_type]],
            "model_type": model_type,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self._size("context_length"),
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
            "rope_scaling": self._rope_scaling(),
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": "output.weight" not in self.gguf.tensors,
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }
        if model_type == "qwen3" or self.head_dim * self.num_heads != self.hidden_size:
            config["head_dim"] = self.head_dim
        if model_type in ("llama", "qwen3"):
            config["attention_bias"] = self.attention_bias
        if model_type == "llama":
            config["mlp_bias"] = self.mlp_bias
        if model_type == "mistral":
            config["sliding_window"] = window
        if model_type in ("qwen2", "qwen3"):
            # Qwen's own configurations carry a window size and leave it off; llama.cpp, for which the file was made,
            # attends to everything.
            config |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": self.num_layers}
        return config

    def _rope_scaling(self) -> dict | None:
        prefix = f"{self.arch}.rope.scaling."
        for key, value in self.gguf.metadata.items():
            name = key.removeprefix(prefix)
            if name != key and name not in _ROPE_KEYS and value != _NEUTRAL_ROPE_VALUES.get(name):
                raise CheckpointError(f"{self.gguf.path}: {key!r} is {quote(value)}; this rope option is not supported")
        factor = self._number("rope.scaling.factor", self._number("rope.scale_linear", 0.0))
        # As in llama.cpp: a factor without a type is linear, a factor of 0 or 1 none.
        kind = self._get("rope.scaling.type", str, "linear")
        scaling = None
        if kind not in ("none", "linear", "yarn"):
            raise CheckpointError(f"{self.gguf.path}: '{prefix}type' is {quote(kind)}, expected none, linear or yarn")
        if kind != "none" and factor not in (0.0, 1.0):
            scaling = {"rope_type": kind, "factor": factor}
        if scaling and kind == "yarn":
            scaling["original_max_position_embeddings"] = self._size("rope.scaling.original_context_length")
            for key in ("beta_fast", "beta_slow"):
                if f"{prefix}yarn_{key}" in self.gguf.metadata:
                    scaling[key] = self._number(f"rope.scaling.yarn_{key}")
        if ROPE_FREQS not in self.gguf.tensors:
            return scaling
        if scaling:
            raise CheckpointError(f"{self.gguf.path}: both {ROPE_FREQS!r} and '{prefix}factor' scale the rotation")
        return self._llama3_scaling()

    def _llama3_scaling(self) -> dict | None:
        """Find the parameters behind the stored frequency divisors of a "llama3" rope; all ones mean none."""
        tensor = self.gguf.tensors[ROPE_FREQS]
        divisors = tensor.rows(slice(None)).reshape(-1)
        if len(divisors) != self.head_dim // 2:
            raise CheckpointError(
                f"{self.gguf.path}: tensor {ROPE_FREQS!r} has shape {tensor.shape}, expected ({self.head_dim // 2},)"
            )
        if (divisors == 1).all():
            return None
        scaling = {
            "rope_type": "llama3",
            "factor": float(str(divisors.max())),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        }
        given = self._get("rope.scaling.original_context_length", int, 8192)
        sound = bool(np.isfinite(divisors).all()) and divisors.min() >= 1
        for original in (given, *(1 << power for power in range(5, 21))) if sound else ():
            scaling["original_max_position_embeddings"] = original
            expected = llama3_divisors(self.head_dim, self.rope_theta, scaling)
            # Stored in float32 after a float32 computation, while neighbouring candidates differ by tens of percent.
            if np.allclose(divisors, expected, rtol=1e-4, atol=0):
                return scaling
        raise CheckpointError(
            f"{self.gguf.path}: tensor {ROPE_FREQS!r} {tensor.shape} fits no llama3 rope scaling with low_freq_factor "
            "1 and high_freq_factor 4; other stored frequencies are not supported"
        )

    def _make_plans(self) -> dict[str, TensorPlan]:
        hidden, inner = self.hidden_size, self.intermediate_size
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        q_heads, k_heads = (self.num_heads, self.num_kv_heads) if self.arch == "llama" else (0, 0)
        with_o_bias = self.attention_bias and self.arch != "qwen2"
        norms = [("attn_norm", "input_layernorm", hidden), ("ffn_norm", "post_attention_layernorm", hidden)]
        if self.arch == "qwen3":
            norms += [
                ("attn_q_norm", "self_attn.q_norm", self.head_dim),
                ("attn_k_norm", "self_attn.k_norm", self.head_dim),
            ]
        linears = [
            ("attn_q", "self_attn.q_proj", q_size, hidden, self.attention_bias, q_heads),
            ("attn_k", "self_attn.k_proj", kv_size, hidden, self.attention_bias, k_heads),
            ("attn_v", "self_attn.v_proj", kv_size, hidden, self.attention_bias, 0),
            ("attn_output", "self_attn.o_proj", hidden, q_size, with_o_bias, 0),
            ("ffn_gate", "mlp.gate_proj", inner, hidden, self.mlp_bias, 0),
            ("ffn_up", "mlp.up_proj", inner, hidden, self.mlp_bias, 0),
            ("ffn_down", "mlp.down_proj", hidden, inner, self.mlp_bias, 0),
        ]
        plans = {"token_embd.weight": TensorPlan("model.embed_tokens.weight", (self.vocab_size, hidden))}
        for layer in range(self.num_layers):
            source, target = f"blk.{layer}.", f"model.layers.{layer}."
            for name, hf_name, size in norms:
                plans[f"{source}{name}.weight"] = TensorPlan(f"{target}{hf_name}.weight", (size,))
            for name, hf_name, out_size, in_size, has_bias, heads in linears:
                plans[f"{source}{name}.weight"] = TensorPlan(f"{target}{hf_name}.weight", (out_size, in_size), heads)
                if has_bias:
                    plans[f"{source}{name}.bias"] = TensorPlan(f"{target}{hf_name}.bias", (out_size,), heads)
        plans["output_norm.weight"] = TensorPlan("model.norm.weight", (hidden,))
        if "output.weight" in self.gguf.tensors:
            plans["output.weight"] = TensorPlan("lm_head.weight", (self.vocab_size, hidden))
        return plans

    def _check_tensors(self) -> None:
        for name in _named_first(self.plans.keys() - self.gguf.tensors.keys()):
            raise CheckpointError(f"{self.gguf.path} lacks tensor {name!r}, which architecture {self.arch} needs")
        for name in _named_first(self.gguf.tensors.keys() - self.plans.keys() - {ROPE_FREQS}):
            raise CheckpointError(
                f"{self.gguf.path} holds tensor {quote(name)}, which architecture {self.arch} does not have here; "
                "a model with it is not supported"
            )
        for name, plan in self.plans.items():
            shape = self.gguf.tensors[name].shape
            if shape != plan.shape:
                raise CheckpointError(f"{self.gguf.path}: tensor {name!r} has shape {shape}, expected {plan.shape}")
        if self.head_dim % 2:
            raise CheckpointError(f"{self.gguf.path}: the head size is {self.head_dim}, expected an even number")


def llama3_divisors(head_dim: int, theta: float, scaling: dict) -> np.ndarray:
    """Compute by how much a "llama3" rope divides each frequency.

    Low frequencies are divided by `factor`, high ones are kept, and between the two bounds the frequency is
    interpolated linearly in the number of turns over the original context.

    Returns:
        [head_dim // 2] float64.

    Source: Llama 3.1's rope scaling, as Hugging Face's configuration names its parameters.
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - kept) / scaling["factor"] + kept)


def row_order(num_rows: int, num_heads: int) -> np.ndarray:
    """Say which stored row each row of a Hugging Face q or k projection is.

    llama.cpp rotates neighbouring rows (2i, 2i + 1) of a head, Hugging Face the halves (i, i + head_dim / 2), so its
    converter interleaves the halves of each head.

    Returns:
        [num_rows] int64: result[i] is the stored row that becomes row i.
    """
    stored = np.arange(num_rows).reshape(num_heads, num_rows // num_heads // 2, 2)
    return stored.swapaxes(1, 2).reshape(-1)


def _named_first(names: Collection[str]) -> list[str]:
    return sorted(names)[:1]
