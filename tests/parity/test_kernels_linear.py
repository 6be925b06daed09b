"""Linear in all its kinds against NumPy, at every instruction-set level, and the order of its sums."""

import itertools

import numpy as np
import pytest

from nanovllm.kernels import reference
from nanovllm.kernels.linear import Linear
from nanovllm.kernels.team import Team

pytestmark = pytest.mark.usefixtures("level")

# (relative, absolute) difference to float64 for inner dimensions up to 200. bfloat16 is compared with the product of
# the rounded factors, int8 with that of factors which it holds exactly.
TOLERANCES = {"blas": (1e-5, 2e-5), "float32": (1e-5, 2e-5), "bfloat16": (1e-5, 2e-5), "int8": (1e-6, 1e-3)}
PACKED = ["float32", "bfloat16", "int8"]
SHAPES = [(0, 8), (1, 1), (1, 200), (3, 17), (7, 72), (12, 64), (13, 63), (33, 65)]


@pytest.fixture(scope="module", params=[1, 2, 5])
def team(request):
    return Team(request.param)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def bfloat16_bits(x):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def widened(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def factors(kind, rows, out_features, in_features):
    """x and a weight; for int8 whole numbers with 127 in every row, which it represents exactly with scale 1."""
    if kind != "int8":
        return normal(1, rows, in_features), normal(2, out_features, in_features)
    rng = np.random.default_rng(3)
    x, weight = (rng.integers(-127, 128, (n, in_features)).astype(np.float32) for n in (rows, out_features))
    x[:, in_features // 2] = 127
    weight[:, -1] = -127
    return x, weight


def make(kind, team, weight, bias=None, gated=False):
    return Linear(weight, bias) if kind == "blas" else Linear.pack(team, kind, [weight], bias, gated)


def product(kind, x, weight, bias=None):
    if kind == "bfloat16":
        x, weight = widened(bfloat16_bits(x)), widened(bfloat16_bits(weight))
    return reference.linear(x.astype(np.float64), weight.astype(np.float64), bias)


def assert_near(kind, found, expected):
    relative, absolute = TOLERANCES[kind]
    np.testing.assert_allclose(found, expected, rtol=relative, atol=absolute)


@pytest.mark.parametrize("rows, in_features", SHAPES)
@pytest.mark.parametrize("kind", ["blas", *PACKED])
def test_linear(team, kind, rows, in_features):
    for out_features in (1, 31, 32, 33, 257):
        x, weight = factors(kind, rows, out_features, in_features)
        for bias in (None, normal(3, out_features)):
            linear = make(kind, team, weight, bias)
            assert (linear.kind, linear.shape) == (kind, (out_features, in_features))
            expected = product(kind, x, weight, bias)
            y = np.full((rows, out_features), np.nan, np.float32)
            linear(team, x, y)
            assert_near(kind, y, expected)
            before = normal(4, rows, out_features)
            y = before.copy()
            linear(team, x, y, accumulate=True)
            assert_near(kind, y, before + expected)


@pytest.mark.parametrize("half", [1, 16, 17, 40])
@pytest.mark.parametrize("rows, in_features, with_bias", [(1, 24, False), (3, 17, True), (13, 64, False)])
@pytest.mark.parametrize("kind", PACKED)
def test_a_gated_pair(team, kind, rows, in_features, half, with_bias):
    x, weight = factors(kind, rows, 2 * half, in_features)
    weight = np.float32(weight / (50 * in_features)) if kind == "int8" else weight  # sums of order 1; still exact
    bias = normal(3, 2 * half) if with_bias else None
    linear = make(kind, team, weight, bias, gated=True)
    assert linear.shape == (half, in_features)
    sums = product(kind, x, weight, bias)
    y = np.full((rows, half), np.nan, np.float32)
    linear(team, x, y)
    np.testing.assert_allclose(y, reference.silu_mul(sums[:, :half], sums[:, half:]), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="a gated pair cannot be added"):
        linear(team, x, y, accumulate=True)


@pytest.mark.parametrize("kind", PACKED)
def test_a_row_has_the_same_bits_whatever_shares_the_call(kind):
    weight, x = normal(1, 70, 200), normal(2, 40, 200)
    team = Team(1)
    linear = make(kind, team, weight, normal(3, 70))
    whole = np.empty((40, 70), np.float32)
    linear(team, x, whole)
    for begin, end in ((0, 1), (39, 40), (3, 8), (5, 18), (1, 40)):
        for threads in (1, 2, 3):
            part = np.empty((end - begin, 70), np.float32)
            linear(Team(threads), x[begin:end].copy(), part)
            np.testing.assert_array_equal(part, whole[begin:end])


@pytest.mark.parametrize("kind", PACKED)
def test_sources_are_stacked_and_widened(team, kind):
    values = np.float32([[0.5, -1, 2, 127], [127, 3, -4, 0.25 * 4], [-127, 64, 32, 1]])
    sources = [values[:1], values[1:2].astype(np.float16), bfloat16_bits(values[2:])]
    linear = Linear.pack(team, kind, sources)
    y = np.empty((1, 3), np.float32)
    linear(team, np.float32([[0, 127, 0, 0]]), y)
    np.testing.assert_allclose(y, [[-127, 381, 127 * 64]], rtol=1e-6)


@pytest.mark.parametrize("kind", PACKED)
def test_a_weight_may_come_in_parts(team, kind):
    weight, x = normal(1, 150, 40), normal(2, 3, 40)
    y, whole = np.empty((3, 150), np.float32), np.empty((3, 150), np.float32)
    Linear.pack(team, kind, [weight])(team, x, whole)
    for cuts in ((0, 150), (0, 32, 150), (0, 64, 96, 128, 150)):
        parts = (weight[begin:end] for begin, end in itertools.pairwise(cuts))
        linear = Linear.pack_parts(team, kind, weight.shape, parts)
        linear(team, x, y)
        np.testing.assert_array_equal(y, whole)
        assert linear.shape == (150, 40)


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ((0, 31, 150), "a part of 119 rows does not fit after 31 of 150 rows"),
        ((0, 32, 64), "the parts have 64 rows in all, the weight 150"),
        ((0, 128, 160), "a part of 32 rows does not fit after 128 of 150 rows"),
    ],
)
def test_parts_that_do_not_make_up_the_weight_are_refused(team, cuts, message):
    parts = (normal(1, end - begin, 8) for begin, end in itertools.pairwise(cuts))
    with pytest.raises(ValueError, match=message):
        Linear.pack_parts(team, "float32", (150, 8), parts)


def test_int8_keeps_the_product_within_a_few_percent(team):
    x, weight = normal(1, 5, 200), normal(2, 64, 200)
    y = np.empty((5, 64), np.float32)
    Linear.pack(team, "int8", [weight])(team, x, y)
    expected = product("float32", x, weight)
    assert np.linalg.norm(y - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", PACKED)
def test_rows_and_columns_of_zeros(team, kind):
    weight = normal(1, 40, 30)
    weight[7] = 0
    x = np.zeros((2, 30), np.float32)
    x[1] = 1
    y = np.full((2, 40), np.nan, np.float32)
    make(kind, team, weight)(team, x, y)
    assert y[0].tolist() == [0] * 40 and y[1, 7] == 0
    assert np.isfinite(y).all()


@pytest.mark.parametrize("kind", ["blas", *PACKED])
def test_a_linear_keeps_its_weight_alive(team, kind):
    linear = make(kind, team, np.full((40, 8), 0.5, np.float32), np.ones(40, np.float32))
    y = np.empty((1, 40), np.float32)
    linear(team, np.ones((1, 8), np.float32), y)
    np.testing.assert_allclose(y, [[5.0] * 40], rtol=1e-6)


def test_what_does_not_fit_is_refused(team):
    weight = normal(1, 4, 3)
    with pytest.raises(ValueError, match="bias has 3 elements, the weight 4 rows"):
        Linear(weight, normal(1, 3))
    with pytest.raises(ValueError, match="bias has 3 elements, the weight 4 rows"):
        Linear.pack(team, "float32", [weight], normal(1, 3))
    for shape in ((0, 3), (4, 0)):
        with pytest.raises(ValueError, match="a weight with elements"):
            Linear.pack(team, "float32", [np.empty(shape, np.float32)])
    for kind in ("blas", "int4", None):
        with pytest.raises(ValueError, match="expected float32, bfloat16 or int8"):
            Linear.pack(team, kind, [weight])
    for source in (weight.astype(np.float64), weight[:, :2], weight[0]):
        with pytest.raises(ValueError, match="source 1 "):
            Linear.pack(team, "float32", [weight, source])
    with pytest.raises(ValueError, match="source 0 is not C-contiguous"):
        Linear.pack(team, "float32", [normal(1, 3, 4).T])
    with pytest.raises(ValueError, match="as many rows of gate as of up, found 3"):
        Linear.pack(team, "float32", [weight[:3]], gated=True)
    linear = Linear.pack(team, "float32", [weight])
    for x_shape, y_shape in (((2, 4), (2, 4)), ((2, 3), (2, 3)), ((2, 3), (1, 4))):
        with pytest.raises(ValueError, match="shapes do not fit"):
            linear(team, np.zeros(x_shape, np.float32), np.zeros(y_shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 5, 16, 71, 72, 76])
def test_int8_does_not_hide_what_is_no_number(place, value):
    x, weight = normal(1, 3, 77), normal(2, 33, 77)
    x[1, place] = value
    team, y = Team(1), np.zeros((3, 33), np.float32)
    make("int8", team, weight)(team, x, y)
    assert not np.isfinite(y[1]).any()
    assert np.isfinite(y[[0, 2]]).all()
