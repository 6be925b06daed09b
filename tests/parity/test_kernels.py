"""Each float32 kernel against its NumPy twin, at every instruction-set level that this machine has."""

import numpy as np
import pytest

from nanovllm.errors import ConfigError
from nanovllm.kernels import isa, ops, reference

pytestmark = pytest.mark.usefixtures("level")
ODD_SIZES = (1, 3, 15, 16, 17, 31, 32, 33, 64, 72, 100)

# Kernel: (relative, absolute) difference to the reference in float64, on inputs of order 1.
TOLERANCES = {
    "rms_norm": (3e-6, 1e-6),
    "rope": (1e-6, 1e-6),
    "silu_mul": (2e-6, 1e-7),
    "log_sum_exp": (1e-6, 1e-6),
}


def assert_near(kernel, actual, expected):
    relative, absolute = TOLERANCES[kernel]
    np.testing.assert_allclose(actual, expected, rtol=relative, atol=absolute)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_levels(level):
    assert isa.active_level() == level
    assert isa.available_levels()[0] == "scalar"
    with pytest.raises(ConfigError, match=r"'sse9' \(NANOVLLM_ISA\) is not available on this machine; it has scalar"):
        isa.use_level("sse9")
    assert isa.active_level() == level


# ---- rms_norm


@pytest.mark.parametrize("size", [*ODD_SIZES, 1000])
@pytest.mark.parametrize("rows", [0, 1, 3, 17])
def test_rms_norm(rows, size):
    x, weight = normal(size, rows, size), normal(size + 1, size)
    expected = reference.rms_norm(x.astype(np.float64), weight, 1e-5)
    out = np.full_like(x, np.nan)
    ops.rms_norm(x, weight, out, 1e-5)
    assert_near("rms_norm", out, expected)
    ops.rms_norm(x, weight, x, 1e-5)
    np.testing.assert_array_equal(x, out)  # in place, the same bits


@pytest.mark.parametrize("scale", [0.0, 1e-18, 1e-3, 1e15])
def test_rms_norm_of_large_and_small_rows(scale):
    x, weight = normal(1, 3, 33) * np.float32(scale), normal(2, 33)
    out = np.empty_like(x)
    ops.rms_norm(x, weight, out, 1e-6)
    assert_near("rms_norm", out, reference.rms_norm(x.astype(np.float64), weight, 1e-6))


def test_rms_norm_of_a_row_does_not_depend_on_its_neighbours():
    x, weight = normal(3, 17, 100), normal(4, 100)
    together, alone = np.empty_like(x), np.empty_like(x)
    ops.rms_norm(x, weight, together, 1e-5)
    for row in range(17):
        ops.rms_norm(x[row : row + 1], weight, alone[row : row + 1], 1e-5)
    np.testing.assert_array_equal(together, alone)


def test_rms_norm_refuses_what_does_not_fit():
    x = normal(1, 2, 4)
    with pytest.raises(ValueError, match=r"x \(2, 4\), weight 3, out \(2, 4\)"):
        ops.rms_norm(x, normal(1, 3), x, 1e-5)
    with pytest.raises(ValueError, match=r"out \(1, 4\)"):
        ops.rms_norm(x, normal(1, 4), normal(1, 1, 4), 1e-5)


# ---- rope


@pytest.mark.parametrize("head_dim", [2, 6, 16, 24, 32, 64, 72, 128])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_rope(rows, head_dim):
    x = normal(head_dim, rows, head_dim)
    cos, sin = reference.rope_tables(np.float32(10000.0) ** -np.linspace(0, 1, head_dim // 2), 1.25, [77], np.float32)
    expected = reference.apply_rope(x[None].astype(np.float64), cos, sin)[0]
    ops.rope(x, cos[0], sin[0])
    assert_near("rope", x, expected)


def test_rope_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="rows of 6 need tables of half that, found"):
        ops.rope(normal(1, 1, 6), normal(1, 3), normal(1, 2))


# ---- silu_mul


@pytest.mark.parametrize("size", [0, *ODD_SIZES])
def test_silu_mul(size):
    gate, up = 4 * normal(size, size), normal(size + 1, size)
    expected = reference.silu_mul(gate.astype(np.float64), up)
    out = np.full_like(gate, np.nan)
    ops.silu_mul(gate, up, out)
    assert_near("silu_mul", out, expected)
    ops.silu_mul(gate, up, gate)
    np.testing.assert_array_equal(gate, out)


def test_silu_mul_of_extremes():
    gate = np.float32([0, -0.0, 87, 88, 89, 200, 1e30, np.inf, -87, -88, -89, -200, -1e4, np.nan, 1])
    up = np.float32([2, 2, 1, 1, 1, 3, 2, 2, 1, 1, 1, 3, 2, 2, np.nan])
    out = np.empty_like(gate)
    ops.silu_mul(gate, up, out)
    expected = np.float32([0, 0, 87, 88, 89, 600, 2e30, np.inf, 0, 0, 0, 0, 0, np.nan, np.nan])
    np.testing.assert_allclose(out, expected, rtol=2e-6, atol=1e-30)


def test_silu_mul_of_huge_negative_gates():
    gate = np.float32([-1e34, -3e38])
    ops.silu_mul(gate, np.ones(2, np.float32), gate)
    np.testing.assert_allclose(gate, [0, 0], atol=1e-3)


def test_silu_mul_does_not_depend_on_where_a_value_stands():
    gate, up = np.full(33, 1.2345, np.float32), np.full(33, -0.678, np.float32)
    out = np.empty_like(gate)
    ops.silu_mul(gate, up, out)
    assert len(set(out.tolist())) == 1


def test_silu_mul_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="lengths differ: 3, 2, 3"):
        ops.silu_mul(normal(1, 3), normal(1, 2), normal(1, 3))


# ---- log_sum_exp


@pytest.mark.parametrize("size", [*ODD_SIZES, 517, 4095, 4096, 4097, 49153])
@pytest.mark.parametrize("spread", [0.01, 3.0, 40.0])
def test_log_sum_exp(size, spread):
    logits = normal(size, size) * np.float32(spread)
    top, log_sum = ops.log_sum_exp(logits)
    assert top == logits.max()
    assert_near("log_sum_exp", log_sum, np.logaddexp.reduce(logits.astype(np.float64)))


@pytest.mark.parametrize(
    "logits, expected",
    [
        ([5.0], 5.0),
        ([-np.inf, 5.0, -np.inf], 5.0),
        ([-np.inf] * 17, -np.inf),
        ([1e30, 1.0, -1e30], 1e30),
        ([-1e30, -1e30], -1e30),
        ([3e38] * 40, 3e38),
        ([1000.0] * 33, 1000.0 + np.log(33)),
        ([-1000.0] * 4 + [-2000.0], -1000.0 + np.log(4)),
    ],
)
def test_log_sum_exp_of_extremes(logits, expected):
    top, log_sum = ops.log_sum_exp(np.float32(logits))
    assert top == np.float32(max(logits))
    assert log_sum == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("position", [0, 5, 39])
def test_log_sum_exp_does_not_hide_nan(position):
    logits = normal(1, 40)
    logits[position] = np.nan
    assert np.isnan(ops.log_sum_exp(logits)[1])


def test_log_sum_exp_refuses_nothing():
    with pytest.raises(ValueError, match="no logits"):
        ops.log_sum_exp(np.empty(0, np.float32))
