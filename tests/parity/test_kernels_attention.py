"""Paged attention against its NumPy twin, over float32 and bfloat16 caches, at every instruction-set level."""

import numpy as np
import pytest

from nanovllm.kernels import ops, reference

pytestmark = pytest.mark.usefixtures("level")
BLOCK = 32

# Cache: (relative, absolute) difference to the reference in float64, on inputs of order 1. With bfloat16 the reference
# gets the rounded queries, keys and values; what is left is the rounding of the softmax weights to 8 bits.
TOLERANCES = {"float32": (5e-6, 3e-6), "bfloat16": (0, 1e-2)}


def assert_near(paged, positions, window=0):
    relative, absolute = TOLERANCES[paged.dtype]
    found, expected = paged.run(positions, window), paged.expected(positions, window)
    np.testing.assert_allclose(found, expected, rtol=relative, atol=absolute)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def to_bfloat16(x):
    """Round to nearest even by integer arithmetic, kept as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request):
    return request.param


class Paged:
    """Queries, keys and values of one sequence; every slot of the cache that it does not own holds NaN."""

    def __init__(self, context_len, head_dim, group=2, num_kv_heads=2, dtype="float32", seed=0):
        self.dtype = dtype
        self.q = normal(seed + 1, context_len, num_kv_heads * group, head_dim)
        self.k, self.v = normal(seed + 2, 2, context_len, num_kv_heads, head_dim)
        num_blocks = -(-context_len // BLOCK)
        padded = -(-head_dim // 32) * 32
        self.k_cache = np.full((num_blocks + 3, num_kv_heads, head_dim, BLOCK), np.nan, np.float32)
        self.v_cache = np.full((num_blocks + 3, num_kv_heads, BLOCK, padded), np.nan, np.float32)
        self.block_table = np.random.default_rng(seed).permutation(num_blocks + 3)[:num_blocks].astype(np.int32)
        positions = np.arange(context_len)
        slots = self.block_table[positions // BLOCK] * BLOCK + positions % BLOCK
        reference.write_kv(self.k_cache, self.v_cache[..., :head_dim], self.k, self.v, slots)

    def run(self, positions, window=0):
        positions = np.asarray(positions, np.int32)
        q = np.ascontiguousarray(self.q[positions])
        out = np.full_like(q, np.nan)
        caches, attention = (self.k_cache, self.v_cache), ops.paged_attention
        if self.dtype == "bfloat16":
            caches, attention = ops.pack_bf16_cache(*caches), ops.paged_attention_bf16
        attention(q, *caches, self.block_table, positions, window, q.shape[2] ** -0.5, out)
        return out

    def expected(self, positions, window=0):
        q, k, v, scale = self.q[positions], self.k, self.v, None
        if self.dtype == "bfloat16":
            q, k, v = (to_bfloat16(x) for x in (q * np.float32(q.shape[2] ** -0.5), k, v))
            scale = 1.0
        return reference.attention(*(x.astype(np.float64) for x in (q, k, v)), positions, window, scale)


def some_positions(context_len):
    """The ends, and what surrounds block and piece borders."""
    wanted = {0, 1, 2, 30, 31, 32, 33, 510, 511, 512, 513, 1023, 1024, context_len - 2, context_len - 1}
    return np.array(sorted(p for p in wanted if 0 <= p < context_len))


@pytest.mark.parametrize("head_dim", [16, 24, 32, 64, 72, 128])
@pytest.mark.parametrize("context_len", [1, 3, 17, 31, 32, 33, 511, 513, 1100])
def test_attention_over_context_lengths(context_len, head_dim, dtype):
    assert_near(Paged(context_len, head_dim, dtype=dtype), some_positions(context_len))


@pytest.mark.parametrize("group", range(1, 10))
@pytest.mark.parametrize("num_kv_heads", [1, 3])
def test_attention_over_query_groups(num_kv_heads, group, dtype):
    assert_near(Paged(40, 24, group, num_kv_heads, dtype), np.arange(40))


@pytest.mark.parametrize("window", [1, 2, 20, 31, 32, 33, 511, 512, 513, 600, 5000])
@pytest.mark.parametrize("context_len", [33, 513, 1100])
def test_attention_windows(context_len, window, dtype):
    assert_near(Paged(context_len, 16, dtype=dtype), some_positions(context_len), window)


def test_a_window_never_reads_blocks_before_it(dtype):
    paged = Paged(700, 16, dtype=dtype)
    paged.k_cache[paged.block_table[:2]] = np.nan
    paged.v_cache[paged.block_table[:2]] = np.nan
    assert_near(paged, np.arange(690, 700), window=600)  # the first visible position is 91, in block 2


@pytest.mark.parametrize("window", [0, 20, 600])
@pytest.mark.parametrize("group", [1, 3, 8, 9])
def test_a_row_has_the_same_bits_in_every_tile(group, window, dtype):
    """Decode (one row), prefill (all rows) and any chunk between must agree, or a preemption would show."""
    paged = Paged(1060, 24, group, dtype=dtype)
    whole = paged.run(np.arange(1060), window)
    for position in some_positions(1060):
        np.testing.assert_array_equal(paged.run([position], window)[0], whole[position])
    for begin, end in ((0, 7), (7, 14), (25, 40), (500, 517), (505, 513), (1020, 1060)):
        np.testing.assert_array_equal(paged.run(np.arange(begin, end), window), whole[begin:end])


def test_attention_weights_do_not_underflow_to_nothing():
    paged = Paged(40, 16)
    paged.q *= 1000  # scores of hundreds: all weights but one are 0
    positions = np.arange(40)
    out = paged.run(positions)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out, paged.expected(positions), rtol=1e-3, atol=1e-3)


def test_attention_of_no_rows_writes_nothing():
    paged = Paged(5, 16)
    assert paged.run(np.arange(0)).shape == (0, 4, 16)


def test_attention_refuses_what_does_not_fit():
    paged = Paged(33, 16)
    q, positions = paged.q, np.arange(33, dtype=np.int32)
    out = np.empty_like(q)
    with pytest.raises(ValueError, match="do not fit"):
        ops.paged_attention(q[:, :3].copy(), paged.k_cache, paged.v_cache, paged.block_table, positions, 0, 1.0, out)
    with pytest.raises(ValueError, match="block table"):
        ops.paged_attention(q, paged.k_cache, paged.v_cache, paged.block_table[:1], positions, 0, 1.0, out)
    with pytest.raises(ValueError, match="block table"):
        ops.paged_attention(q, paged.k_cache, paged.v_cache, paged.block_table + 9, positions, 0, 1.0, out)
    k_bf16, v_bf16 = ops.pack_bf16_cache(paged.k_cache, paged.v_cache)
    with pytest.raises(ValueError, match="do not fit heads of 16"):
        ops.paged_attention_bf16(q, k_bf16[..., 2:].copy(), v_bf16, paged.block_table, positions, 0, 1.0, out)
    with pytest.raises(ValueError, match="block table"):
        ops.paged_attention_bf16(q, k_bf16, v_bf16, paged.block_table[:1], positions, 0, 1.0, out)


def test_packing_rounds_to_the_nearest_even():
    # 1 + 2^-8 lies between 1 and 1 + 2^-7 and goes to the even one, 1 + 3 * 2^-8 goes up.
    k, v = np.zeros((1, 1, 2, BLOCK), np.float32), np.zeros((1, 1, BLOCK, 32), np.float32)
    k[0, 0, :, 5] = 1 + 2**-8, 1 + 3 * 2**-8
    v[0, 0, 6:8, 9] = -2.0, 0.5
    k_bf16, v_bf16 = ops.pack_bf16_cache(k, v)
    assert k_bf16.reshape(BLOCK, 2)[5].tolist() == [0x3F80, 0x3F82]  # neighbours in head_dim side by side
    assert v_bf16.reshape(16, 32, 2)[3, 9].tolist() == [0xC000, 0x3F00]  # neighbours in position side by side
    assert np.count_nonzero(k_bf16) == np.count_nonzero(v_bf16) == 2
