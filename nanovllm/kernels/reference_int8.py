"""Attention over an int8 KV cache again in plain NumPy: the specification that the kernels are tested against.

Keys and values are whole numbers from -127 to 127 with one scale for each position and head; queries likewise; softmax
weights are whole numbers of 14 bits, scaled anew in each piece of 512 positions. Products are summed exactly. What is
left between this and a kernel is the rounding of exponentials, which may move a weight by one.

Must not know layouts: the cache's bytes are the kernels' own matter.
"""

from __future__ import annotations

import numpy as np

PIECE = 512
WEIGHT_MAX = 16383


def quantize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round the last axis to whole numbers from -127 to 127.

    Args:
        x: `[..., size]` float32.

    Returns:
        The numbers as int64, and scales `[...]` float32 by which they are x again.
    """
    most = np.max(np.abs(x), axis=-1)
    with np.errstate(divide="ignore"):
        inverse = np.where(most > 0, np.float32(127) / most, np.float32(0))
    return np.rint(x * inverse[..., None]).astype(np.int64), most * np.float32(1 / 127)


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, q_positions: np.ndarray, window: int = 0, scale: float | None = None
) -> np.ndarray:
    """Compute what `reference.attention` does over keys and values that an int8 cache keeps.

    Args:
        q: `[num_queries, num_heads, head_dim]` float32.
        k: `[context_len, num_kv_heads, head_dim]` float32; row j is position j.
        v: like `k`.
        q_positions: `[num_queries]` int, each in [0, context_len).
        window: 0 for full attention.
        scale: on the scores; None: 1 / sqrt(head_dim).

    Returns:
        `[num_queries, num_heads, head_dim]` float32.
    """
    group = q.shape[1] // k.shape[1]
    q_whole, q_scale = quantize(q)
    k_whole, k_scale = quantize(k)
    v_whole, v_scale = quantize(v)
    q_scale = q_scale * np.float32(q.shape[2] ** -0.5 if scale is None else scale)
    distance = np.asarray(q_positions)[:, None] - np.arange(len(k))[None, :]
    visible = (distance >= 0) & ((distance < window) if window else True)
    out = np.empty_like(q)
    for head in range(q.shape[1]):
        kv = head // group
        sums = (q_whole[:, head] @ k_whole[:, kv].T).astype(np.float32)  # [num_queries, context_len]
        scores = np.where(visible, sums * (k_scale[:, kv] * q_scale[:, head, None]), np.float32(-np.inf))
        out[:, head] = _fold_pieces(scores, v_whole[:, kv], v_scale[:, kv])
    return out


def _fold_pieces(scores: np.ndarray, values: np.ndarray, value_scale: np.ndarray) -> np.ndarray:
    """Return softmax(scores) @ (values * value_scale), the weights rounded piece by piece."""
    most = scores.max(axis=1, keepdims=True)
    total, weighted = np.float32(0), np.float32(0)
    for begin in range(0, scores.shape[1], PIECE):
        piece = slice(begin, begin + PIECE)
        top = scores[:, piece].max(axis=1, keepdims=True)
        seen = np.isfinite(top)
        weights = np.where(seen, np.exp(scores[:, piece] - np.where(seen, top, 0)), np.float32(0))
        share = np.where(seen, np.exp(top - most), np.float32(0))
        scaled = weights * value_scale[piece]
        largest = scaled.max(axis=1, keepdims=True)
        inverse = np.divide(np.float32(WEIGHT_MAX), largest, out=np.zeros_like(largest), where=largest > 0)
        sums = np.rint(scaled * inverse).astype(np.int64) @ values[piece]
        weighted = weighted + sums.astype(np.float32) * (largest * np.float32(1 / WEIGHT_MAX)) * share
        total = total + weights.sum(axis=1, keepdims=True) * share
    return weighted / total
