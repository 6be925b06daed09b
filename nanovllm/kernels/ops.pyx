"""Array entries to single kernels, so that each can be held against its NumPy twin in `reference.py`."""

import numpy as np

from libc.stdint cimport int32_t, uint8_t, uint16_t

from nanovllm.kernels.isa cimport (
    NV_ATTN_ROWS, NV_BLOCK, NV_CACHE_BF16, NV_CACHE_F32, NV_CACHE_INT8, kernels, nv_attention, nv_attention_scratch,
    nv_k_block_bytes, nv_v_block_bytes, nv_v_stride,
)


def rms_norm(const float[:, ::1] x, const float[::1] weight, float[:, ::1] out, float eps):
    """out = x / sqrt(mean(x^2) + eps) * weight over the last axis; out may be x."""
    if x.shape[1] != weight.shape[0] or out.shape[0] != x.shape[0] or out.shape[1] != x.shape[1]:
        raise ValueError(f"shapes do not fit: x {x.shape[0], x.shape[1]}, weight {weight.shape[0]}, "
                         f"out {out.shape[0], out.shape[1]}")
    if x.shape[0] == 0 or x.shape[1] == 0:
        return
    with nogil:
        kernels().rms_norm(&x[0, 0], x.shape[1], &weight[0], &out[0, 0], x.shape[1], x.shape[0], x.shape[1], eps)


def rope(float[:, ::1] x, const float[::1] cosines, const float[::1] sines):
    """Rotate each row of x [rows, head_dim] in place by half-split RoPE; cosines, sines [head_dim / 2]."""
    cdef Py_ssize_t row
    if x.shape[1] != 2 * cosines.shape[0] or x.shape[1] != 2 * sines.shape[0]:
        raise ValueError(f"rows of {x.shape[1]} need tables of half that, found {cosines.shape[0], sines.shape[0]}")
    with nogil:
        for row in range(x.shape[0] if x.shape[1] else 0):
            kernels().rope(&x[row, 0], &cosines[0], &sines[0], x.shape[1])


def silu_mul(const float[::1] gate, const float[::1] up, float[::1] out):
    """out = gate / (1 + exp(-gate)) * up; out may be gate."""
    if gate.shape[0] != up.shape[0] or out.shape[0] != gate.shape[0]:
        raise ValueError(f"lengths differ: {gate.shape[0]}, {up.shape[0]}, {out.shape[0]}")
    if gate.shape[0]:
        with nogil:
            kernels().silu_mul(&gate[0], &up[0], &out[0], gate.shape[0])


def log_sum_exp(const float[::1] logits):
    """(largest logit, log(sum(exp(logits))))."""
    cdef float top
    cdef double log_sum
    if logits.shape[0] == 0:
        raise ValueError("log_sum_exp of no logits")
    with nogil:
        kernels().log_sum_exp(&logits[0], logits.shape[0], &top, &log_sum)
    return top, log_sum


def pack_bf16_cache(k, v):
    """Return float caches (layouts of `paged_attention`) as bfloat16 bits in the layouts that the bf16 kernels read.

    k [.., head_dim, 32] becomes [.., head_dim / 2, 32, 2]; v [.., 32, padded] becomes [.., 16, padded, 2]; the last
    axes come joined.
    """
    def narrow(x):
        cdef const float[::1] flat = np.ascontiguousarray(x, np.float32).reshape(-1)
        out = np.empty(flat.shape[0], np.uint16)
        cdef uint16_t[::1] view = out
        kernels().to_bf16(&flat[0], &view[0], flat.shape[0], flat.shape[0])
        return out.reshape(x.shape)
    num_blocks, kv_heads, dim, _ = k.shape
    padded = v.shape[3]
    k16 = narrow(k).reshape(num_blocks, kv_heads, dim // 2, 2, NV_BLOCK).swapaxes(3, 4)
    v16 = narrow(v).reshape(num_blocks, kv_heads, NV_BLOCK // 2, 2, padded).swapaxes(3, 4)
    return k16.reshape(num_blocks, kv_heads, dim * NV_BLOCK), v16.reshape(num_blocks, kv_heads, NV_BLOCK * padded)


cdef check_attention(q, k_shape, v_shape, const int32_t[::1] block_table, const int32_t[::1] positions, out):
    """Refuse arrays that the kernel would read or write outside of."""
    if v_shape != k_shape or positions.shape[0] != q.shape[0] or tuple(out.shape) != tuple(q.shape):
        raise ValueError(f"k_cache {k_shape}, v_cache {v_shape}, {positions.shape[0]} positions and out "
                         f"{tuple(out.shape)} do not fit q {tuple(q.shape)}")
    if min(positions) < 0 or max(positions) // NV_BLOCK >= block_table.shape[0]:
        raise ValueError("a position is negative or past the block table")
    if min(block_table) < 0 or max(block_table) >= k_shape[0]:
        raise ValueError("the block table names a block outside the cache")


def paged_attention_bf16(const float[:, :, ::1] q, const uint16_t[:, :, ::1] k_cache, const uint16_t[:, :, ::1] v_cache,
                         const int32_t[::1] block_table, const int32_t[::1] positions, int window, float scale,
                         float[:, :, ::1] out):
    """`paged_attention` over a bfloat16 cache, as `pack_bf16_cache` lays it out."""
    cdef Py_ssize_t dim = q.shape[2], padded = nv_v_stride(<int>dim)
    if k_cache.shape[2] != dim * NV_BLOCK or v_cache.shape[2] != padded * NV_BLOCK or q.shape[1] % k_cache.shape[1]:
        raise ValueError(f"k_cache {tuple(k_cache.shape)[:3]} and v_cache {tuple(v_cache.shape)[:3]} do not fit heads "
                         f"of {dim}")
    if q.shape[0] == 0:
        return
    check_attention(q, (k_cache.shape[0], k_cache.shape[1]), (v_cache.shape[0], v_cache.shape[1]), block_table,
                    positions, out)
    run_attention(q, <const char *>&k_cache[0, 0, 0], <const char *>&v_cache[0, 0, 0], k_cache.shape[1], NV_CACHE_BF16,
                  block_table, positions, window, scale, out)


def write_int8_cache(const float[:, :, ::1] k, const float[:, :, ::1] v, slots, uint8_t[:, :, ::1] k_cache,
                     uint8_t[:, :, ::1] v_cache):
    """Store rows k, v [num_rows, num_kv_heads, head_dim] in slots of an int8 cache.

    Args:
        k_cache: [num_blocks, num_kv_heads, bytes of a block] as in csrc/kernels.h, written; v_cache: likewise.
    """
    cdef int dim = <int>k.shape[2]
    cdef Py_ssize_t row, head, slot
    cdef uint8_t[::1] temp = np.empty(dim, np.uint8)
    check_int8_cache(k.shape[1], dim, k_cache, v_cache)
    for row in range(k.shape[0]):
        slot = slots[row]
        if not 0 <= slot < k_cache.shape[0] * NV_BLOCK:
            raise ValueError(f"slot {slot} is outside the cache of {k_cache.shape[0] * NV_BLOCK}")
        for head in range(k.shape[1]):
            kernels().store_int8(&k[row, head, 0], &v[row, head, 0], dim, <char *>&k_cache[slot // NV_BLOCK, head, 0],
                                 <char *>&v_cache[slot // NV_BLOCK, head, 0], <int>(slot % NV_BLOCK), &temp[0])


cdef check_int8_cache(Py_ssize_t kv_heads, int dim, const uint8_t[:, :, ::1] k_cache,
                      const uint8_t[:, :, ::1] v_cache):
    wanted = nv_k_block_bytes(NV_CACHE_INT8, dim), nv_v_block_bytes(NV_CACHE_INT8, dim)
    if (k_cache.shape[1] != kv_heads or v_cache.shape[1] != kv_heads or v_cache.shape[0] != k_cache.shape[0]
            or (k_cache.shape[2], v_cache.shape[2]) != wanted):
        raise ValueError(f"blocks of {k_cache.shape[2], v_cache.shape[2]} bytes and {k_cache.shape[1]} heads do not "
                         f"fit {kv_heads} heads of {dim}, which take {wanted}")


def paged_attention_int8(const float[:, :, ::1] q, const uint8_t[:, :, ::1] k_cache, const uint8_t[:, :, ::1] v_cache,
                         const int32_t[::1] block_table, const int32_t[::1] positions, int window, float scale,
                         float[:, :, ::1] out):
    """`paged_attention` over an int8 cache, as `write_int8_cache` fills it."""
    if k_cache.shape[1] == 0 or q.shape[1] % k_cache.shape[1]:
        raise ValueError(f"{q.shape[1]} heads do not share {k_cache.shape[1]} heads of the cache")
    check_int8_cache(k_cache.shape[1], <int>q.shape[2], k_cache, v_cache)
    if q.shape[0] == 0:
        return
    check_attention(q, (k_cache.shape[0], k_cache.shape[1]), (v_cache.shape[0], v_cache.shape[1]), block_table,
                    positions, out)
    run_attention(q, <const char *>&k_cache[0, 0, 0], <const char *>&v_cache[0, 0, 0], k_cache.shape[1], NV_CACHE_INT8,
                  block_table, positions, window, scale, out)


def paged_attention(const float[:, :, ::1] q, const float[:, :, :, ::1] k_cache, const float[:, :, :, ::1] v_cache,
                    const int32_t[::1] block_table, const int32_t[::1] positions, int window, float scale,
                    float[:, :, ::1] out):
    """Causal grouped-query attention of one sequence's rows over its blocks.

    Args:
        q: [num_rows, num_heads, head_dim]; positions: [num_rows]; out: like q, written.
        k_cache: [num_blocks, num_kv_heads, head_dim, 32]; v_cache: [num_blocks, num_kv_heads, 32, padded head_dim],
            the head_dim padded to a multiple of 32.
        window: 0, or how many positions up to its own a row sees.
    """
    cdef Py_ssize_t dim = q.shape[2], padded = nv_v_stride(<int>dim)
    if (k_cache.shape[2] != dim or k_cache.shape[3] != NV_BLOCK or v_cache.shape[3] != padded
            or k_cache.shape[1] == 0 or q.shape[1] % k_cache.shape[1]):
        raise ValueError(f"q has {q.shape[1]} heads of {dim}; k_cache {tuple(k_cache.shape)[1:4]}, "
                         f"v_cache {tuple(v_cache.shape)[1:4]} do not fit")
    if q.shape[0] == 0:
        return
    check_attention(q, (k_cache.shape[0], k_cache.shape[1]), (v_cache.shape[0], v_cache.shape[1]), block_table,
                    positions, out)
    run_attention(q, <const char *>&k_cache[0, 0, 0, 0], <const char *>&v_cache[0, 0, 0, 0], k_cache.shape[1],
                  NV_CACHE_F32, block_table, positions, window, scale, out)


cdef run_attention(const float[:, :, ::1] q, const char *k_cache, const char *v_cache, Py_ssize_t kv_heads,
                   int cache, const int32_t[::1] block_table, const int32_t[::1] positions, int window,
                   float scale, float[:, :, ::1] out):
    cdef Py_ssize_t rows = q.shape[0], heads = q.shape[1], dim = q.shape[2], group = heads // kv_heads
    cdef Py_ssize_t padded = nv_v_stride(<int>dim), kv_head, index, r, row, head
    cdef Py_ssize_t k_bytes = nv_k_block_bytes(cache, <int>dim), v_bytes = nv_v_block_bytes(cache, <int>dim)
    cdef Py_ssize_t q_offset[NV_ATTN_ROWS]
    cdef Py_ssize_t out_offset[NV_ATTN_ROWS]
    cdef int32_t position[NV_ATTN_ROWS]
    cdef nv_attention a
    cdef Py_ssize_t most = kernels().attention_rows
    scratch = np.empty(nv_attention_scratch(<int>most, <int>dim), np.float32)
    cdef float[::1] scratch_view = scratch
    a.q, a.out, a.q_offset, a.out_offset, a.position = &q[0, 0, 0], &out[0, 0, 0], q_offset, out_offset, position
    a.block_table, a.head_dim, a.v_stride, a.window = &block_table[0], <int>dim, <int>padded, window
    a.k_block_stride, a.v_block_stride = kv_heads * k_bytes, kv_heads * v_bytes
    a.scale, a.scratch, a.cache, a.done, a.state = scale, &scratch_view[0], cache, 0, NULL
    a.next, a.asked = NULL, 0
    for kv_head in range(kv_heads):
        a.k_cache, a.v_cache = k_cache + kv_head * k_bytes, v_cache + kv_head * v_bytes
        for index in range(0, rows * group, most):
            a.num_rows = <int>min(most, rows * group - index)
            for r in range(a.num_rows):
                row, head = (index + r) // group, kv_head * group + (index + r) % group
                q_offset[r] = out_offset[r] = (row * heads + head) * dim
                position[r] = positions[row]
            with nogil:
                kernels().attention(&a)
