"""From a checkpoint's tensors to the arrays and Linears that the decoder wants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nanovllm.checkpoint.loader import Checkpoint, check_tensors, read_float32
from nanovllm.errors import CheckpointError
from nanovllm.kernels.linear import Linear
from nanovllm.models.spec import ModelSpec

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
# Buffers that old exporters saved along with the weights; they are derived from config.json.
_IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".attn.bias", ".masked_bias")


@dataclass(slots=True)
class Weights:
    """A model in the layout of its kernels.

    Attributes:
        embedding: [vocab_size, hidden_size] float32. final_norm: [hidden_size] float32.
        layers: for each layer the dict that `Decoder` takes.
        nbytes: memory held, a tied head counted once.
        unexpected: names of tensors that nothing needs.
    """

    embedding: np.ndarray
    final_norm: np.ndarray
    lm_head: Linear
    layers: list[dict]
    nbytes: int
    unexpected: list[str]


def _require_head(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    if HEAD not in checkpoint.names and not spec.tie_word_embeddings:
        raise CheckpointError(
            f"{checkpoint.model_dir}: tensor {HEAD} is missing, and tie_word_embeddings is false "
            f"({spec.tie_origin}): set tie_word_embeddings to true in config.json if the head is the embedding, "
            f"or get a checkpoint that holds the tensor"
        )


def _stacked(checkpoint: Checkpoint, names: list[str], suffix: str) -> np.ndarray | None:
    """The tensors NAME + suffix one below the other, or None when the model has none of them."""
    if names[0] + suffix not in checkpoint.names:
        return None
    shapes = [checkpoint.names[name + suffix].shape for name in names]
    out = np.empty((sum(shape[0] for shape in shapes), *shapes[0][1:]), np.float32)
    start = 0
    for name, shape in zip(names, shapes, strict=True):
        read_float32(checkpoint, name + suffix, out[start : start + shape[0]])
        start += shape[0]
    return out


def _linear(checkpoint: Checkpoint, *names: str, bias: bool) -> Linear:
    weight = _stacked(checkpoint, list(names), ".weight")
    return Linear(weight, _stacked(checkpoint, list(names), ".bias") if bias else None)


def _layer(checkpoint: Checkpoint, spec: ModelSpec, prefix: str) -> dict:
    def vector(name: str) -> np.ndarray:
        return read_float32(checkpoint, prefix + name)

    attn, mlp = prefix + "self_attn.", prefix + "mlp."
    return {
        "input_norm": vector("input_layernorm.weight"),
        "post_norm": vector("post_attention_layernorm.weight"),
        "q_norm": vector("self_attn.q_norm.weight") if spec.qk_norm else None,
        "k_norm": vector("self_attn.k_norm.weight") if spec.qk_norm else None,
        "qkv": _linear(checkpoint, attn + "q_proj", attn + "k_proj", attn + "v_proj", bias=spec.attention_bias),
        "o": _linear(checkpoint, attn + "o_proj", bias=spec.o_bias),
        "gate_up": _linear(checkpoint, mlp + "gate_proj", mlp + "up_proj", bias=spec.mlp_bias),
        "down": _linear(checkpoint, mlp + "down_proj", bias=spec.mlp_bias),
    }


def load_weights(
    checkpoint: Checkpoint, spec: ModelSpec, progress: Callable[[int, int], None] | None = None
) -> Weights:
    """Check every tensor of the model first, then read them; mapped pages are given back as they are converted.

    Args:
        progress: called with (layers done, layers in all).

    Raises:
        CheckpointError: a tensor is missing or has the wrong shape or dtype.
    """
    _require_head(checkpoint, spec)
    unexpected = check_tensors(checkpoint, spec.slots(), ignorable=(HEAD,))
    embedding = read_float32(checkpoint, EMBEDDING)
    # A tied model that ships lm_head.weight all the same uses the embedding, as transformers does.
    lm_head = Linear(embedding if spec.tie_word_embeddings else read_float32(checkpoint, HEAD))
    layers = []
    for i in range(spec.num_hidden_layers):
        layers.append(_layer(checkpoint, spec, f"model.layers.{i}."))
        if progress:
            progress(i + 1, spec.num_hidden_layers)
    nbytes = embedding.nbytes + (0 if spec.tie_word_embeddings else lm_head.nbytes)
    nbytes += sum(part.nbytes for layer in layers for part in layer.values() if part is not None)
    unexpected = [name for name in unexpected if not name.endswith(_IGNORED_SUFFIXES)]
    return Weights(embedding, read_float32(checkpoint, FINAL_NORM), lm_head, layers, nbytes, unexpected)
