"""The int8 scheme's rotation is exact: matrices are orthogonal, and turned Linears compute the same function."""

import numpy as np
import pytest

from nanovllm.engine.rotation import Rotation, hadamard_matrix, power_of_two_part


def test_largest_power_of_two():
    assert [power_of_two_part(n) for n in (1, 6, 64, 576, 896)] == [1, 2, 64, 64, 128]
    assert power_of_two_part(4864, 64) == 64
    assert power_of_two_part(24, 64) == 8


def test_hadamard_matrix_by_hand():
    assert np.allclose(hadamard_matrix(2) * np.sqrt(2), [[1, 1], [1, -1]])
    assert np.allclose(hadamard_matrix(4) * 2, [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])


@pytest.mark.parametrize("hidden, head_dim, inner", [(576, 64, 1536), (72, 24, 200), (96, 16, 136), (5, 2, 7)])
def test_turned_linears_compute_the_same(hidden, head_dim, inner):
    rng = np.random.default_rng(0)
    turn, heads = Rotation(hidden, head_dim, inner), 3
    x = rng.standard_normal((4, hidden), np.float32)
    q = turn.residual(np.eye(hidden, dtype=np.float32))
    assert np.abs(q @ q.T - np.eye(hidden)).max() < 2e-6
    norm = rng.standard_normal(hidden, np.float32)
    w = rng.standard_normal((7, hidden), np.float32)
    assert np.allclose(turn.residual(x) @ turn.reads_residual(w, norm).T, (x * norm) @ w.T, atol=1e-4)
    w = rng.standard_normal((hidden, 7), np.float32)
    y = rng.standard_normal((4, 7), np.float32)
    assert np.allclose(y @ turn.writes_residual(w).T, turn.residual(y @ w.T), atol=1e-4)
    v = rng.standard_normal((heads * head_dim, hidden), np.float32)
    o = rng.standard_normal((hidden, heads * head_dim), np.float32)
    assert np.allclose(x @ turn.heads_out(v).T @ turn.heads_in(o).T, x @ v.T @ o.T, atol=2e-3)
    down = rng.standard_normal((hidden, inner), np.float32)
    h = rng.standard_normal((4, inner), np.float32)
    turned = (h.reshape(-1, turn.hadamard_block) @ hadamard_matrix(turn.hadamard_block)).reshape(h.shape)
    assert np.allclose(turned @ turn.down_in(down).T, h @ down.T, atol=1e-3)
