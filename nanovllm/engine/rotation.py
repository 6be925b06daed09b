"""The int8 scheme's rotation of a model, done once at load and exact in real arithmetic.

Rows of int8 with one scale each are too coarse for a few channels of large values. Turning the residual stream by an
orthogonal matrix spreads them over all channels; every Linear that reads or writes the stream is turned along, so the
model computes the same function. Source: QuaRot, Ashkboos et al. 2024 (arXiv 2404.00456), sections 3 and 4.

    residual   Q = R (x) H / sqrt(b), for hidden_size = m b: H a Hadamard matrix of size b, R orthogonal of size m
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


def hadamard_matrix(size: int) -> np.ndarray:
    """Return Sylvester's Hadamard matrix over sqrt(size), float32, symmetric; size is a power of two."""
    h = np.ones((1, 1))
    while len(h) < size:
        h = np.block([[h, h], [h, -h]])
    return (h / np.sqrt(size)).astype(np.float32)


def turn_blocks(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return x with each run of len(matrix) values along the last axis multiplied by the matrix; float32."""
    return (np.ascontiguousarray(x).reshape(-1, len(matrix)) @ matrix).reshape(x.shape)


class Rotation:
    """The orthogonal matrices of one model."""

    def __init__(self, hidden_size: int, head_dim: int, intermediate_size: int):
        self.hadamard_block = power_of_two_part(intermediate_size, MAX_HADAMARD_BLOCK)
        self._block = hadamard_matrix(power_of_two_part(hidden_size, MAX_HADAMARD_BLOCK))
        self._head = hadamard_matrix(power_of_two_part(head_dim, MAX_HADAMARD_BLOCK))
        self._inner = hadamard_matrix(self.hadamard_block)
        count = hidden_size // len(self._block)
        # Any orthogonal matrix serves between the blocks; a fixed seed makes every load the same. Made in float64, it
        # is orthogonal to the last bit of float32.
        q, r = np.linalg.qr(np.random.default_rng(0).standard_normal((count, count)))
        self._between = (q * np.sign(np.diag(r))).astype(np.float32)

    def residual(self, x: np.ndarray) -> np.ndarray:
        """Turn the last axis [hidden_size]: a row x becomes x @ Q."""
        rows = turn_blocks(x, self._block).reshape(-1, len(self._between), len(self._block))
        return np.matmul(self._between.T, rows).reshape(x.shape)

    def reads_residual(self, weight: np.ndarray, norm: np.ndarray) -> np.ndarray:
        """Fold the norm before a Linear into it and let it read the turned stream: W diag(norm) Q."""
        return self.residual(weight * norm)

    def writes_residual(self, weight: np.ndarray) -> np.ndarray:
        """Let a Linear [hidden_size, in_features] write the turned stream: Q.T W."""
        blocks = weight.reshape(len(self._between), len(self._block), -1)
        turned = np.matmul(self._block, blocks).reshape(len(self._between), -1)  # the block's matrix is symmetric
        return (self._between.T @ turned).reshape(weight.shape)

    def heads_out(self, weight: np.ndarray) -> np.ndarray:
        """Turn the output of v, one Hadamard matrix for each head: rows [heads * head_dim]; also a bias [.., 1]."""
        return np.matmul(self._head, weight.reshape(-1, len(self._head), weight.shape[1])).reshape(weight.shape)

    def heads_in(self, weight: np.ndarray) -> np.ndarray:
        """Let o read what `heads_out` turned: columns [heads * head_dim]."""
        return turn_blocks(weight, self._head)

    def down_in(self, weight: np.ndarray) -> np.ndarray:
        """Let down read the input that the kernel turns in blocks."""
        return turn_blocks(weight, self._inner)
