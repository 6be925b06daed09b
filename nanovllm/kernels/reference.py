"""Every kernel again in plain NumPy: the specification that the fast ones are tested against.

Clear and slow on purpose; never on the path of a user's request. Functions keep the dtype of their float arguments, so
that the same code is the float32 twin and, fed float64, the oracle that shows how much of a difference is rounding.
Must not know checkpoints or model families: `forward` takes any object with the fields it reads.

Sources: RMSNorm, Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4; RoPE, Su et al. 2021, arXiv 2104.09864, 3.4.2, in
the half-split layout of Hugging Face transformers 5.24.0 (models/llama/modeling_llama.py); gated SiLU, Shazeer 2020,
arXiv 2002.05202; grouped-query attention, Ainslie et al. 2023, arXiv 2305.13245; paged cache, Kwon et al. 2023,
arXiv 2309.06180.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


def embedding(table: np.ndarray, token_ids: np.ndarray) -> np.ndarray:
    """Look up rows.

    Args:
        table: `[vocab_size, hidden_size]` float.
        token_ids: `[num_tokens]` int, each in [0, vocab_size).

    Returns:
        `[num_tokens, hidden_size]`, a copy.
    """
    return table[np.asarray(token_ids)]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Scale each row to unit mean square, then by `weight`: x / sqrt(mean(x²) + eps) * weight.

    Args:
        x: `[..., size]` float; may be heads `[num_tokens, num_heads, head_dim]`.
        weight: `[size]` float.
        eps: added to the mean square.
    """
    mean_square = np.mean(x * x, axis=-1, keepdims=True)  # [..., 1]
    return x / np.sqrt(mean_square + x.dtype.type(eps)) * weight


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Compute x @ weight.T + bias.

    Args:
        x: `[num_rows, in_features]` float.
        weight: `[out_features, in_features]` float.
        bias: `[out_features]` float or None.

    Returns:
        `[num_rows, out_features]`.
    """
    product = x @ weight.T
    return product if bias is None else product + bias


def rope_tables(
    inv_freq: np.ndarray, attention_scaling: float, positions: np.ndarray, dtype: Any = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Compute cos and sin of position * inv_freq, both times `attention_scaling`.

    The angle is rounded to float32 whatever `dtype` says, because transformers defines it so; cos and sin are taken in
    float64 and rounded once.

    Args:
        inv_freq: `[head_dim // 2]` float32.
        attention_scaling: 1 but for yarn and longrope.
        positions: `[num_tokens]` int.
        dtype: of the result.

    Returns:
        cos, sin: `[num_tokens, head_dim // 2]`.
    """
    positions = np.asarray(positions, dtype=np.float32)
    angles = (positions[:, None] * inv_freq[None, :].astype(np.float32)).astype(np.float64)
    scaling = np.dtype(dtype).type(attention_scaling)
    return np.cos(angles).astype(dtype) * scaling, np.sin(angles).astype(dtype) * scaling


def apply_rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotate pairs (i, i + head_dim // 2) of every head by the token's angles.

    Args:
        x: `[num_tokens, num_heads, head_dim]` float.
        cos: `[num_tokens, head_dim // 2]` float.
        sin: like `cos`.
    """
    first, second = np.split(x, 2, axis=-1)  # [num_tokens, num_heads, head_dim // 2] each
    cos, sin = cos[:, None, :], sin[:, None, :]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def silu_mul(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Compute gate * sigmoid(gate) * up, elementwise.

    Args:
        gate: `[num_tokens, intermediate_size]` float.
        up: like `gate`.
    """
    decay = np.exp(-np.abs(gate))  # in (0, 1]: cannot overflow
    sigmoid = np.where(gate >= 0, 1 / (1 + decay), decay / (1 + decay))
    return gate * sigmoid * up


def softmax(x: np.ndarray) -> np.ndarray:
    """Normalize exp(x) over the last axis; -inf gives 0, and each row needs one finite entry."""
    exps = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return exps / np.sum(exps, axis=-1, keepdims=True)


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Compute x - log(sum(exp(x))) over the last axis; each row needs one finite entry."""
    shifted = x - np.max(x, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    q_positions: np.ndarray,
    window: int = 0,
    scale: float | None = None,
) -> np.ndarray:
    """Compute causal grouped-query attention over one sequence.

    Head h of q reads head h // (num_heads // num_kv_heads) of k and v. The query at position p sees key positions
    j <= p, with a window w > 0 only p - w < j <= p.

    Args:
        q: `[num_queries, num_heads, head_dim]` float, rotated.
        k: `[context_len, num_kv_heads, head_dim]` float, rotated; row j is position j.
        v: like `k`, not rotated.
        q_positions: `[num_queries]` int, each in [0, context_len).
        window: 0 for full attention.
        scale: on the scores; None: 1 / sqrt(head_dim).

    Returns:
        `[num_queries, num_heads, head_dim]`.
    """
    group_size = q.shape[1] // k.shape[1]
    scale = q.shape[2] ** -0.5 if scale is None else scale
    keys = np.repeat(k, group_size, axis=1).transpose(1, 2, 0)  # [num_heads, head_dim, context_len]
    values = np.repeat(v, group_size, axis=1).transpose(1, 0, 2)  # [num_heads, context_len, head_dim]
    scores = q.transpose(1, 0, 2) @ keys * q.dtype.type(scale)  # [num_heads, num_queries, context_len]
    distance = np.asarray(q_positions)[:, None] - np.arange(len(k))[None, :]  # [num_queries, context_len]
    visible = distance >= 0
    if window:
        visible &= distance < window
    weights = softmax(np.where(visible[None], scores, q.dtype.type(-np.inf)))  # [num_heads, num_queries, context_len]
    return (weights @ values).transpose(1, 0, 2)


def write_kv(k_cache: np.ndarray, v_cache: np.ndarray, k: np.ndarray, v: np.ndarray, slot_mapping: np.ndarray) -> None:
    """Store each token's k and v in its slot.

    Args:
        k_cache: `[num_blocks, num_kv_heads, head_dim, block_size]` float, written: positions run fastest, so that the
            scores of neighbouring positions come from neighbouring memory.
        v_cache: `[num_blocks, num_kv_heads, block_size, head_dim]` float, written.
        k: `[num_tokens, num_kv_heads, head_dim]` float.
        v: like `k`.
        slot_mapping: `[num_tokens]` int, block id * block_size + offset, no slot twice.
    """
    block_size = k_cache.shape[3]
    for token, slot in enumerate(np.asarray(slot_mapping)):
        block, offset = divmod(int(slot), block_size)
        k_cache[block, :, :, offset] = k[token]
        v_cache[block, :, offset, :] = v[token]


def read_kv(
    k_cache: np.ndarray, v_cache: np.ndarray, block_table: np.ndarray, context_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gather one sequence's keys and values, position after position.

    Args:
        k_cache: as in `write_kv`, read-only.
        v_cache: likewise.
        block_table: `[>= ceil(context_len / block_size)]` int; entry i holds positions i * block_size and on.
        context_len: number of positions.

    Returns:
        k, v: `[context_len, num_kv_heads, head_dim]`.
    """
    blocks = np.asarray(block_table)[: -(-context_len // k_cache.shape[3])]
    num_kv_heads, head_dim = k_cache.shape[1:3]
    k = k_cache[blocks].transpose(0, 3, 1, 2).reshape(-1, num_kv_heads, head_dim)
    v = v_cache[blocks].transpose(0, 2, 1, 3).reshape(-1, num_kv_heads, head_dim)
    return k[:context_len], v[:context_len]


def paged_attention(
    q: np.ndarray,
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    block_table: np.ndarray,
    context_len: int,
    window: int = 0,
    scale: float | None = None,
) -> np.ndarray:
    """Compute attention of a sequence's newest tokens over its paged cache, their own k and v included.

    Args:
        q: `[num_queries, num_heads, head_dim]` float; the last row is position context_len - 1.
        k_cache: as in `write_kv`, read-only.
        v_cache: likewise.
        block_table: as in `read_kv`.
        context_len: positions in the cache.
        window: as in `attention`.
        scale: likewise.

    Returns:
        `[num_queries, num_heads, head_dim]`.
    """
    k, v = read_kv(k_cache, v_cache, block_table, context_len)
    return attention(q, k, v, np.arange(context_len - len(q), context_len), window, scale)


class ForwardResult(NamedTuple):
    """What `forward` computed.

    Attributes:
        logits: `[num_tokens, vocab_size]`.
        hidden: `[num_layers + 1, num_tokens, hidden_size]`: the embedding, then the output of each layer, the last one
            after the final norm (the convention of transformers).
    """

    logits: np.ndarray
    hidden: np.ndarray


def forward(
    spec: Any, weights: Mapping[str, np.ndarray], token_ids: np.ndarray, dtype: Any = np.float32
) -> ForwardResult:
    """Run one whole sequence from position 0 through the model, without a cache.

    Args:
        spec: sizes, options and `rope` of the model, under the names of config.json.
        weights: float tensors by checkpoint name; a tied lm_head is not looked up.
        token_ids: `[num_tokens]` int.
        dtype: of all arithmetic.
    """
    params = _Cast(weights, dtype)
    token_ids = np.asarray(token_ids)
    cos, sin = rope_tables(spec.rope.inv_freq, spec.rope.attention_scaling, np.arange(len(token_ids)), dtype)
    x = embedding(params["model.embed_tokens.weight"], token_ids)
    hidden = [x]
    for layer in range(spec.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        x = x + _attention_block(spec, params, prefix, spec.sliding_windows[layer], x, cos, sin)
        x = x + _mlp_block(spec, params, prefix, x)
        hidden.append(x)
    hidden[-1] = rms_norm(x, params["model.norm.weight"], spec.rms_norm_eps)
    head = "model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
    return ForwardResult(linear(hidden[-1], params[head]), np.stack(hidden))


class _Cast:
    """Weights by name in one dtype."""

    def __init__(self, weights: Mapping[str, np.ndarray], dtype: Any):
        self.weights = weights
        self.dtype = dtype

    def __getitem__(self, name: str) -> np.ndarray:
        return self.weights[name].astype(self.dtype, copy=False)

    def linear(self, name: str, x: np.ndarray, bias: bool) -> np.ndarray:
        return linear(x, self[name + ".weight"], self[name + ".bias"] if bias else None)


def _attention_block(
    spec: Any, params: _Cast, prefix: str, window: int, x: np.ndarray, cos: np.ndarray, sin: np.ndarray
) -> np.ndarray:
    num_tokens = len(x)
    normed = rms_norm(x, params[prefix + "input_layernorm.weight"], spec.rms_norm_eps)
    prefix += "self_attn."
    q, k, v = (
        params.linear(prefix + name, normed, spec.attention_bias).reshape(num_tokens, num_heads, spec.head_dim)
        for name, num_heads in (
            ("q_proj", spec.num_attention_heads),
            ("k_proj", spec.num_key_value_heads),
            ("v_proj", spec.num_key_value_heads),
        )
    )
    if spec.qk_norm:
        q = rms_norm(q, params[prefix + "q_norm.weight"], spec.rms_norm_eps)
        k = rms_norm(k, params[prefix + "k_norm.weight"], spec.rms_norm_eps)
    q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
    mixed = attention(q, k, v, np.arange(num_tokens), window)
    return params.linear(prefix + "o_proj", mixed.reshape(num_tokens, -1), spec.o_bias)


def _mlp_block(spec: Any, params: _Cast, prefix: str, x: np.ndarray) -> np.ndarray:
    normed = rms_norm(x, params[prefix + "post_attention_layernorm.weight"], spec.rms_norm_eps)
    gate = params.linear(prefix + "mlp.gate_proj", normed, spec.mlp_bias)
    up = params.linear(prefix + "mlp.up_proj", normed, spec.mlp_bias)
    return params.linear(prefix + "mlp.down_proj", silu_mul(gate, up), spec.mlp_bias)
