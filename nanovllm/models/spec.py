"""What the rest of the engine knows about a model: sizes, options, rotary table and the tensors it needs.

Plain data. Must not know config.json: `sheet` translates, this module only holds the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TensorSlot:
    """A tensor that the model needs.

    Attributes:
        name: its name in the checkpoint.
        shape: its shape there; a Linear's weight is `[out_features, in_features]`.
        optional: the checkpoint may leave it out.
    """

    name: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, eq=False)
class RopeTable:
    """The rotary embedding, fixed for one `max_model_len`.

    Attributes:
        rope_type: default, linear, dynamic, yarn, llama3 or longrope.
        inv_freq: `[head_dim // 2]` float32, read-only; radians for each position.
        attention_scaling: factor on both cos and sin.
        regime: one phrase for people, saying which scaling holds and over what length.
    """

    rope_type: str
    inv_freq: np.ndarray
    attention_scaling: float
    regime: str


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """One model, as its config.json and generation_config.json describe it.

    Fields that config.json also has keep its spelling and meaning. The others:

    Attributes:
        max_context: longest context that the rotary scaling was made for; `max_model_len` should not exceed it.
        tie_origin: where `tie_word_embeddings` comes from, `config.json` or `default of MODEL_TYPE`.
        attention_bias: q_proj, k_proj and v_proj have a bias.
        o_bias: o_proj has a bias.
        mlp_bias: gate_proj, up_proj and down_proj have a bias.
        qk_norm: each head of q and k passes an RMSNorm before the rotation.
        sliding_windows: for each layer 0 (full attention) or a window w: the query at position p sees p-w+1..p.
        rope: the rotary table for the `max_model_len` that was asked for.
        eos_token_ids: every id that ends a sequence, config.json's first; empty when the model names none.
        torch_dtype: the dtype that config.json announces, None when it announces none that is served.
        generation_defaults: sampling values of generation_config.json, under the names of SamplingParams.
        warnings: sentences that a person should see once.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    max_context: int
    tie_word_embeddings: bool
    tie_origin: str
    attention_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int, ...]
    rope: RopeTable
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    torch_dtype: str | None
    generation_defaults: dict[str, Any]
    warnings: tuple[str, ...]

    def slots(self) -> list[TensorSlot]:
        """List every tensor of the model, in the order of the forward pass."""
        slots = [TensorSlot("model.embed_tokens.weight", (self.vocab_size, self.hidden_size))]
        for layer in range(self.num_hidden_layers):
            slots += self._layer_slots(f"model.layers.{layer}.")
        slots.append(TensorSlot("model.norm.weight", (self.hidden_size,)))
        head_shape = (self.vocab_size, self.hidden_size)
        slots.append(TensorSlot("lm_head.weight", head_shape, optional=self.tie_word_embeddings))
        return slots

    def _layer_slots(self, prefix: str) -> Iterator[TensorSlot]:
        hidden, inner = self.hidden_size, self.intermediate_size
        q_size = self.num_attention_heads * self.head_dim
        kv_size = self.num_key_value_heads * self.head_dim
        yield TensorSlot(prefix + "input_layernorm.weight", (hidden,))
        for name, out_size in (("q_proj", q_size), ("k_proj", kv_size), ("v_proj", kv_size)):
            yield from _linear(f"{prefix}self_attn.{name}", out_size, hidden, self.attention_bias)
        if self.qk_norm:
            yield TensorSlot(prefix + "self_attn.q_norm.weight", (self.head_dim,))
            yield TensorSlot(prefix + "self_attn.k_norm.weight", (self.head_dim,))
        yield from _linear(prefix + "self_attn.o_proj", hidden, q_size, self.o_bias)
        yield TensorSlot(prefix + "post_attention_layernorm.weight", (hidden,))
        yield from _linear(prefix + "mlp.gate_proj", inner, hidden, self.mlp_bias)
        yield from _linear(prefix + "mlp.up_proj", inner, hidden, self.mlp_bias)
        yield from _linear(prefix + "mlp.down_proj", hidden, inner, self.mlp_bias)

    @property
    def num_parameters(self) -> int:
        """Count the weights; a tied lm_head is counted once, with the embedding."""
        return sum(prod(slot.shape) for slot in self.slots() if not slot.optional)


def _linear(name: str, out_size: int, in_size: int, bias: bool) -> Iterator[TensorSlot]:
    yield TensorSlot(name + ".weight", (out_size, in_size))
    if bias:
        yield TensorSlot(name + ".bias", (out_size,))
