"""The data sheet of a model family, and the reading of config.json along it.

Owns what all families share: sizes and their limits, refusals, tied embeddings. A family's own module overrides only
what is different there. Must not know tensors' bytes or kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nanovllm.models.fields import Fields, describe, name_keys
from nanovllm.models.generation import eos_token_ids, sampling_defaults, special_token_id
from nanovllm.models.rope import MAX_POSITIONS, build_rope
from nanovllm.models.spec import ModelSpec

# Far above every published model; low enough that a damaged config.json cannot ask for absurd memory.
_MAX_VOCAB = 1 << 24
_MAX_HIDDEN = 1 << 20
_MAX_INNER = 1 << 22
_MAX_LAYERS = 1000
_MAX_HEADS = 1 << 14
_MAX_HEAD_DIM = 4096

_DTYPES = ("float32", "float16", "bfloat16")

# Keys of config.json that change nothing at inference; whatever else nobody reads is named in one warning.
_IRRELEVANT_KEYS = """
add_cross_attention attention_dropout auto_map bad_words_ids begin_suppress_tokens bos_token chunk_size_feed_forward
cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample early_stopping embd_pdrop
encoder_no_repeat_ngram_size eos_token exponential_decay_length_penalty finetuning_task forced_bos_token_id
forced_eos_token_id hidden_dropout id2label initializer_range is_decoder is_encoder_decoder is_llama_config label2id
length_penalty max_length max_sequence_length min_length no_repeat_ngram_size num_beam_groups num_beams
num_return_sequences output_attentions output_hidden_states output_scores pad_token prefix pretraining_tp
problem_type pruned_heads remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate
sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k
top_p torchscript transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache
"""
_IRRELEVANT = frozenset(_IRRELEVANT_KEYS.split())


class Biases(NamedTuple):
    """Which Linears of a layer have a bias."""

    qkv: bool
    o: bool
    mlp: bool


class Sheet:
    """What a model family is; the class attributes are the defaults that transformers gives absent keys.

    Attributes:
        model_type: the name in config.json, and the key of the registry.
        architectures: class names that this sheet serves; anything else is a different head or model.
        default_head_dim: None means hidden_size / num_attention_heads.
        qk_norm: heads of q and k are normalized before the rotation.
    """

    model_type: str
    architectures: tuple[str, ...]
    default_max_positions: int
    default_head_dim: int | None = None
    default_tie: bool = False
    default_bos: int | None = None
    default_eos: int | None = None
    qk_norm: bool = False

    def biases(self, config: Fields) -> Biases:
        """Tell which Linears have a bias."""
        raise NotImplementedError

    def sliding_windows(self, config: Fields, num_layers: int) -> tuple[int, ...]:
        """Return each layer's attention window, 0 for full attention."""
        return (0,) * num_layers

    def read(self, config: Fields, generation: Fields, max_model_len: int | None) -> ModelSpec:
        """Translate the two files into a ModelSpec.

        Raises:
            ConfigError: a value is missing, impossible, or asks for something that is not served.
        """
        self._refuse_unserved(config)
        warnings: list[str] = []
        hidden_size = config.integer("hidden_size", high=_MAX_HIDDEN)
        num_layers = config.integer("num_hidden_layers", high=_MAX_LAYERS)
        num_heads = config.integer("num_attention_heads", high=_MAX_HEADS)
        num_kv_heads = config.integer("num_key_value_heads", high=_MAX_HEADS, default=num_heads)
        if num_heads % num_kv_heads:
            config.refuse("num_key_value_heads", f"a divisor of num_attention_heads, {num_heads}")
        head_dim = self._head_dim(config, hidden_size, num_heads)
        vocab_size = config.integer("vocab_size", high=_MAX_VOCAB)
        max_positions = config.integer(
            "max_position_embeddings", high=MAX_POSITIONS, default=self.default_max_positions
        )
        rope, max_context = build_rope(
            config, head_dim=head_dim, max_positions=max_positions, max_model_len=max_model_len, warnings=warnings
        )
        biases = self.biases(config)
        tie_written = config.raw("tie_word_embeddings") is not None
        special = {"config": config, "generation": generation, "vocab_size": vocab_size}
        spec = {
            "model_type": self.model_type,
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "intermediate_size": config.integer("intermediate_size", high=_MAX_INNER),
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "head_dim": head_dim,
            "rms_norm_eps": config.number("rms_norm_eps", high=1, default=1e-6),
            "max_position_embeddings": max_positions,
            "max_context": max_context,
            "tie_word_embeddings": config.boolean("tie_word_embeddings", self.default_tie),
            "tie_origin": "config.json" if tie_written else f"default of {self.model_type}",
            "attention_bias": biases.qkv,
            "o_bias": biases.o,
            "mlp_bias": biases.mlp,
            "qk_norm": self.qk_norm,
            "sliding_windows": self.sliding_windows(config, num_layers),
            "rope": rope,
            "bos_token_id": special_token_id(key="bos_token_id", default=self.default_bos, **special),
            "eos_token_ids": eos_token_ids(default=self.default_eos, warnings=warnings, **special),
            "pad_token_id": special_token_id(key="pad_token_id", **special),
            "torch_dtype": _dtype(config, warnings),
            "generation_defaults": sampling_defaults(generation),
        }
        unknown = [key for key in config.unasked() if key not in _IRRELEVANT and not key.startswith("_")]
        if unknown:
            warnings.append(
                f"{config.where}: {self.model_type} has no use for these keys, ignored: {name_keys(unknown)}"
            )
        return ModelSpec(**spec, warnings=tuple(warnings))

    def _head_dim(self, config: Fields, hidden_size: int, num_heads: int) -> int:
        default = self.default_head_dim
        if default is None or config.has("head_dim"):
            if config.raw("head_dim") is None and hidden_size % num_heads:
                config.refuse(
                    "head_dim",
                    f"a number, because hidden_size {hidden_size} is not divisible by num_attention_heads {num_heads}",
                )
            default = max(1, hidden_size // num_heads)
        head_dim = config.integer("head_dim", high=_MAX_HEAD_DIM, default=default)
        if head_dim > _MAX_HEAD_DIM or head_dim % 2:
            derived = "" if config.raw("head_dim") else f" (hidden_size / num_attention_heads is {head_dim})"
            config.refuse("head_dim", f"an even number up to {_MAX_HEAD_DIM}{derived}")
        return head_dim

    def _refuse_unserved(self, config: Fields) -> None:
        architectures = config.strings("architectures")
        if architectures and not set(architectures) <= set(self.architectures):
            config.refuse(
                "architectures",
                describe([self.architectures[0]]),
                f"only text generation is served for model_type {self.model_type}",
            )
        for key in ("quantization_config", "quantization", "compression_config"):
            quantization = config.raw(key)
            if quantization is not None:
                method = quantization.get("quant_method") if isinstance(quantization, dict) else None
                named = f" (quant_method {describe(method)})" if method is not None else ""
                config.refuse(
                    key, f"none{named}", "quantized checkpoints are not supported, use the float16 or bfloat16 original"
                )
        if (config.text("hidden_act") or "silu") not in ("silu", "swish"):
            config.refuse("hidden_act", '"silu" or "swish"', "this activation is not supported")
        if config.boolean("rope_interleaved", False):
            config.refuse("rope_interleaved", "false", "interleaved rotation is not supported")


def windows_by_type(config: Fields, layer_types: Sequence[str], window: int) -> tuple[int, ...]:
    """Turn a list of `full_attention` and `sliding_attention` into windows; a `window` of 0 means that it is off."""
    windows = {"full_attention": 0, "sliding_attention": window}
    for layer, name in enumerate(layer_types):
        if name not in windows:
            config.refuse("layer_types", f"full_attention or sliding_attention, not {describe(name)} (layer {layer})")
        if name == "sliding_attention" and not window:
            config.refuse("layer_types", f"no sliding_attention (layer {layer}) while the sliding window is off")
    return tuple(windows[name] for name in layer_types)


def window_size(config: Fields, default: int) -> int:
    """Return `sliding_window`: `default` when the key is absent, 0 when it is null."""
    if config.has("sliding_window") and config.raw("sliding_window") is None:
        return 0
    return config.integer("sliding_window", high=MAX_POSITIONS, default=default)


def qwen_windows(config: Fields, num_layers: int) -> tuple[int, ...]:
    """Return the windows of a Qwen model: from `max_window_layers` on, or as `layer_types` lists them."""
    window = window_size(config, default=4096)
    if not config.boolean("use_sliding_window", False):
        window = 0
    first_windowed = config.integer("max_window_layers", low=0, high=1 << 31, default=28)
    layer_types = config.strings("layer_types")
    if layer_types is None:
        return tuple(window if layer >= first_windowed else 0 for layer in range(num_layers))
    if len(layer_types) != num_layers:
        config.refuse("layer_types", f"one entry for each of {num_layers} layers")
    return windows_by_type(config, layer_types, window)


def _dtype(config: Fields, warnings: list[str]) -> str | None:
    key = "torch_dtype" if config.raw("dtype") is None else "dtype"
    config.raw("torch_dtype")  # the old spelling may stand beside the new one
    name = config.text(key)
    if name is None or name == "auto":
        return None
    name = name.removeprefix("torch.")
    if name in _DTYPES:
        return name
    warnings.append(f"{config.where}: {key} is {describe(name)}, expected one of {', '.join(_DTYPES)}; ignored")
    return None
