"""The int8 scheme's rotation of a model, done once at load and exact in real arithmetic.

Rows of int8 with one scale each are too coarse for a few channels of large values. Turning the residual stream by an
orthogonal matrix spreads them over all channels; every Linear that reads or writes the stream is turned along, so the
model computes the same function. Source: QuaRot, Ashkboos et al. 2024 (arXiv 2404.00456), sections 3 and 4.

    residual   Q = (H / sqrt(2^a)) (x) R, for hidden_size = 2^a m: H a Hadamard matrix, R orthogonal of size m
    v and o    a Hadamard matrix for each head
    down       its input by Hadamard blocks of `hadamard_block`, at run time by the kernel, here in the weight

A norm's weight is folded into the Linears behind it, since a rotation passes through a norm only without it.
"""

from __future__ import annotations

import numpy as np

MAX_HADAMARD_BLOCK = 64


def power_of_two_part(n: int, limit: int | None = None) -> int:
    """Return the largest power of two that divides n, at most `limit`."""
    part = n & -n
    return part if limit is None else min(part, limit)


def hadamard_last_axis(x: np.ndarray, block: int) -> np.ndarray:
    """Return x with each run of `block` values along the last axis turned by H / sqrt(block), H Sylvester's.

    Args:
        x: [..., n] float32, n a multiple of block; block a power of two.
    """
    shape = x.shape
    y = np.ascontiguousarray(x, np.float32).reshape(-1, block)
    half = 1
    while half < block:
        pairs = y.reshape(-1, block // (2 * half), 2, half)
        y = np.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), axis=2).reshape(-1, block)
        half *= 2
    return (y * np.float32(block**-0.5)).reshape(shape)


class Rotation:
    """The orthogonal matrices of one model."""

    def __init__(self, hidden_size: int, head_dim: int, intermediate_size: int):
        self._block = power_of_two_part(hidden_size)
        odd = hidden_size // self._block
        # Any orthogonal matrix serves; a fixed seed makes every load the same. float64, so that it is orthogonal to
        # the last bit of float32.
        q, r = np.linalg.qr(np.random.default_rng(0).standard_normal((odd, odd)))
        self._odd = (q * np.sign(np.diag(r))).astype(np.float32)
        self._head_block = power_of_two_part(head_dim)
        self.hadamard_block = power_of_two_part(intermediate_size, MAX_HADAMARD_BLOCK)

    def residual(self, x: np.ndarray) -> np.ndarray:
        """Turn the last axis [hidden_size]: a row x becomes x @ Q."""
        y = hadamard_last_axis(x.reshape(-1, x.shape[-1]), self._block)
        odd = len(self._odd)
        # Channel i = (i // block, i % block): the second index is turned by H above, the first by R here.
        y = y.reshape(-1, odd, self._block).swapaxes(1, 2)
        return np.ascontiguousarray((y @ self._odd).swapaxes(1, 2)).reshape(x.shape)

    def reads_residual(self, weight: np.ndarray, norm: np.ndarray) -> np.ndarray:
        """Fold the norm before a Linear into it and let it read the turned stream: W diag(norm) Q."""
        return self.residual(weight * norm)

    def writes_residual(self, weight: np.ndarray) -> np.ndarray:
        """Let a Linear [hidden_size, in_features] write the turned stream: Q.T W."""
        return np.ascontiguousarray(self.residual(np.ascontiguousarray(weight.T)).T)

    def heads_out(self, weight: np.ndarray) -> np.ndarray:
        """Turn the output of v, one Hadamard matrix for each head: rows [heads * head_dim]; also a bias [.., 1]."""
        return np.ascontiguousarray(hadamard_last_axis(np.ascontiguousarray(weight.T), self._head_block).T)

    def heads_in(self, weight: np.ndarray) -> np.ndarray:
        """Let o read what `heads_out` turned: columns [heads * head_dim]."""
        return hadamard_last_axis(weight, self._head_block)

    def down_in(self, weight: np.ndarray) -> np.ndarray:
        """Let down read the input that the kernel turns in blocks."""
        return hadamard_last_axis(weight, self.hadamard_block)
