"""Attention over an int8 cache against its NumPy twin, at every instruction-set level."""

import numpy as np
import pytest

from nanovllm.kernels import isa, ops, reference, reference_int8

pytestmark = pytest.mark.usefixtures("level")
BLOCK = 32
# Largest difference on inputs of order 1; found at every level: 8.6e-5. An exponential that is off in its last bit may
# move a weight by one of 16383.
TO_TWIN = 2e-4
# To attention in float64 over keys and values that were never rounded; found: 0.025.
TO_EXACT = 4e-2


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def empty_cache(num_blocks, num_kv_heads, head_dim):
    """Keys' and values' bytes of an int8 cache that is full of garbage: every scale is NaN, every number -1 + 128."""
    padded = -(-head_dim // 32) * 32
    k_cache = np.full((num_blocks, num_kv_heads, -(-head_dim // 4) * 128 + 256), 0xFF, np.uint8)
    return k_cache, np.full((num_blocks, num_kv_heads, 32 * padded), 0xFF, np.uint8)


class Paged:
    """Queries, keys and values of one sequence; every slot of the cache that it does not own holds garbage."""

    def __init__(self, context_len, head_dim, group=2, num_kv_heads=2, seed=0):
        self.q = normal(seed + 1, context_len, num_kv_heads * group, head_dim)
        self.k, self.v = normal(seed + 2, 2, context_len, num_kv_heads, head_dim)
        num_blocks = -(-context_len // BLOCK)
        self.block_table = np.random.default_rng(seed).permutation(num_blocks + 3)[:num_blocks].astype(np.int32)
        self.store()

    def store(self):
        positions = np.arange(len(self.k))
        slots = self.block_table[positions // BLOCK] * BLOCK + positions % BLOCK
        self.caches = empty_cache(len(self.block_table) + 3, *self.k.shape[1:])
        ops.write_int8_cache(self.k, self.v, slots, *self.caches)

    def run(self, positions, window=0):
        positions = np.asarray(positions, np.int32)
        q = np.ascontiguousarray(self.q[positions])
        out = np.full_like(q, np.nan)
        ops.paged_attention_int8(q, *self.caches, self.block_table, positions, window, q.shape[2] ** -0.5, out)
        return out

    def assert_near_twin(self, positions, window=0):
        expected = reference_int8.attention(self.q[positions], self.k, self.v, positions, window)
        np.testing.assert_allclose(self.run(positions, window), expected, rtol=0, atol=TO_TWIN)


def some_positions(context_len):
    """The ends, and what surrounds block and piece borders."""
    wanted = {0, 1, 2, 30, 31, 32, 33, 510, 511, 512, 513, 1023, 1024, context_len - 2, context_len - 1}
    return np.array(sorted(p for p in wanted if 0 <= p < context_len))


@pytest.mark.parametrize("head_dim", [2, 16, 20, 24, 32, 64, 72, 80, 96, 128, 130, 256])
@pytest.mark.parametrize("context_len", [1, 3, 31, 33, 513, 1100])
def test_over_context_lengths(context_len, head_dim):
    Paged(context_len, head_dim).assert_near_twin(some_positions(context_len))


@pytest.mark.parametrize("group", range(1, 10))
@pytest.mark.parametrize("num_kv_heads", [1, 3])
def test_over_query_groups(num_kv_heads, group):
    Paged(40, 24, group, num_kv_heads).assert_near_twin(np.arange(40))


@pytest.mark.parametrize("window", [1, 2, 31, 32, 33, 511, 512, 513, 600, 5000])
@pytest.mark.parametrize("context_len", [33, 513, 1100])
def test_windows(context_len, window):
    Paged(context_len, 16).assert_near_twin(some_positions(context_len), window)


@pytest.mark.parametrize("head_dim", [20, 64])
def test_near_attention_without_any_rounding(head_dim):
    paged = Paged(700, head_dim)
    positions = some_positions(700)
    exact = reference.attention(*(x.astype(np.float64) for x in (paged.q[positions], paged.k, paged.v)), positions)
    np.testing.assert_allclose(paged.run(positions), exact, rtol=0, atol=TO_EXACT)


def test_the_twin_by_hand():
    """Two positions: numbers that need no rounding, and weights of 1/2 each."""
    q, k = np.zeros((2, 1, 2), np.float32), np.ones((2, 1, 2), np.float32)
    v = np.array([[[127, 64]], [[-1, 127]]], np.float32)
    found = reference_int8.attention(q, k, v, np.arange(2))
    np.testing.assert_allclose(found, [[[127, 64]], [[63, 95.5]]], rtol=1e-6)
    whole, scale = reference_int8.quantize(np.array([[254, 3, -5, -254], [0, 0, 0, 0]], np.float32))
    assert whole.tolist() == [[127, 2, -2, -127], [0, 0, 0, 0]]  # halves to the even one
    assert scale.tolist() == [2, 0]


def test_the_cache_by_hand():
    k, v = np.zeros((1, 1, 6), np.float32), np.zeros((1, 1, 6), np.float32)
    k[0, 0], v[0, 0] = [1, 2, -3, 4, 5, 127], [-254, 0, 2, 4, 6, 8]
    k_cache, v_cache = np.zeros((2, 1, 512), np.uint8), np.zeros((2, 1, 1024), np.uint8)
    ops.write_int8_cache(k, v, [37], k_cache, v_cache)  # block 1, place 5
    assert not k_cache[0].any() and not v_cache[0].any()
    keys, scales = k_cache[1, 0, :256].reshape(2, 32, 4), k_cache[1, 0, 256:].view(np.float32)
    assert keys[:, 5].tolist() == [[129, 130, 125, 132], [133, 255, 0, 0]]
    assert np.count_nonzero(keys) == 6
    assert v_cache[1, 0].reshape(8, 32, 4)[1, :6, 1].tolist() == [1, 128, 129, 130, 131, 132]
    assert np.count_nonzero(v_cache) == 6
    np.testing.assert_allclose(scales[[5, 37]], [1, 2], rtol=1e-6)
    assert np.count_nonzero(scales) == 2


def test_every_level_stores_the_same_bytes(level):
    k, v = normal(5, 2, 64, 3, 72)
    stored = []
    for name in isa.testable_levels():
        isa.use_level(name)
        stored.append(empty_cache(2, 3, 72))
        ops.write_int8_cache(k, v, np.arange(64), *stored[-1])
    for keys, values in stored[1:]:
        np.testing.assert_array_equal(keys, stored[0][0])
        np.testing.assert_array_equal(values, stored[0][1])


@pytest.mark.parametrize("head_dim", [24, 64, 128])
def test_every_level_with_fused_operations_gives_the_same_bits(level, head_dim):
    paged, positions = Paged(700, head_dim, 3), some_positions(700)
    found = {}
    for name in isa.testable_levels():
        isa.use_level(name)
        found[name] = paged.run(positions)
    del found["scalar"]  # whose exponential rounds each step
    for result in found.values():
        np.testing.assert_array_equal(result, next(iter(found.values())))


@pytest.mark.parametrize("window", [0, 20, 600])
@pytest.mark.parametrize("group", [1, 3, 8, 9])
def test_a_row_has_the_same_bits_in_every_tile(group, window):
    paged = Paged(1060, 24, group)
    whole = paged.run(np.arange(1060), window)
    assert np.isfinite(whole).all()
    for position in some_positions(1060):
        np.testing.assert_array_equal(paged.run([position], window)[0], whole[position])
    for begin, end in ((0, 7), (7, 14), (25, 40), (500, 517), (505, 513), (1020, 1060)):
        np.testing.assert_array_equal(paged.run(np.arange(begin, end), window), whole[begin:end])


@pytest.mark.parametrize("garbage", [0, 0x7F, 0x80, 0xFF])
def test_what_other_sequences_left_changes_no_bit(garbage):
    paged = Paged(601, 64)
    positions = np.array([0, 5, 31, 32, 599, 600])
    expected = paged.run(positions, 70)
    before = (paged.k.copy(), paged.v.copy())
    for cache in paged.caches:
        cache[:] = garbage  # scales of 0, 3.4e38, -1e-38 and NaN
    table = paged.block_table
    slots = [int(table[p // BLOCK]) * BLOCK + p % BLOCK for p in range(601)]
    ops.write_int8_cache(*before, slots, *paged.caches)
    np.testing.assert_array_equal(paged.run(positions, 70), expected)


@pytest.mark.parametrize("array", ["q", "k", "v"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [0, 7, 19])
def test_what_is_no_number_shows_in_the_rows_that_see_it(array, value, channel):
    paged = Paged(40, 20, group=3, num_kv_heads=1)
    getattr(paged, array)[30, 0, channel] = value
    paged.store()
    out = paged.run(np.arange(40), window=6)
    if array == "q":
        assert not np.isfinite(out[30, 0]).any()
        assert np.isfinite(np.delete(out.reshape(120, 20), 90, axis=0)).all()
        return
    assert not np.isfinite(out[30:36]).any()  # they see position 30; those after it no longer
    assert np.isfinite(out[:30]).all() and np.isfinite(out[36:]).all()


def test_nearly_all_weight_on_one_position_keeps_the_rest():
    """A sink of weight 0.99 over 500 positions: eight bits of weight would leave nothing of the others."""
    paged = Paged(500, 64, group=1, num_kv_heads=1)
    paged.k[:] = 0
    paged.k[0] = paged.q[499]
    norm = float(np.sum(paged.q[499] ** 2)) / 8
    paged.q[499] *= np.log(0.99 / 0.01 * 499) / norm
    paged.v[0] = 0.01
    paged.v[1:] = 1
    paged.store()
    np.testing.assert_allclose(paged.run([499]), 0.99 * 0.01 + 0.01, atol=3e-4)


def test_scores_of_hundreds_and_values_that_nearly_vanish():
    paged = Paged(40, 16)
    paged.q *= 1000
    paged.v *= 1e-36
    paged.store()
    out = paged.run(np.arange(40))
    assert np.isfinite(out).all() and np.abs(out).max() < 1e-34
    paged.v[:] = 0
    paged.store()
    np.testing.assert_array_equal(paged.run(np.arange(40)), 0)


def test_refusals():
    paged = Paged(33, 16)
    q, positions, out = paged.q, np.arange(33, dtype=np.int32), np.empty_like(paged.q)
    k_cache, v_cache = paged.caches
    with pytest.raises(ValueError, match=r"do not fit 2 heads of 16, which take \(768, 1024\)"):
        ops.paged_attention_int8(q, k_cache[..., 1:].copy(), v_cache, paged.block_table, positions, 0, 1.0, out)
    with pytest.raises(ValueError, match="do not share"):
        ops.paged_attention_int8(q[:, :3].copy(), *paged.caches, paged.block_table, positions, 0, 1.0, out)
    with pytest.raises(ValueError, match="block table"):
        ops.paged_attention_int8(q, *paged.caches, paged.block_table[:1], positions, 0, 1.0, out)
    with pytest.raises(ValueError, match="slot 160 is outside the cache of 160"):
        ops.write_int8_cache(paged.k, paged.v, np.arange(160, 193), *paged.caches)
