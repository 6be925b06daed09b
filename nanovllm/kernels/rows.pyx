"""The operators of a layer that go by rows: embedding, norms, rotation, the KV cache, quantization.

Each takes a thread's share of a step's rows; none knows what multiplies them.
"""

from libc.math cimport cosf, sinf
from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from nanovllm.kernels.isa cimport NV_BF16, NV_BLOCK, NV_CACHE_BF16, NV_CACHE_INT8, NV_INT8, NV_PANEL
from nanovllm.kernels.linear cimport rows_t
from nanovllm.kernels.step cimport OWN_NORM_ROWS, PHASE_NORM, layer_t, meet, model_t, step_t


cdef void embed_row(const model_t *m, Py_ssize_t token, float *out) noexcept nogil:
    """Widen one row of the embedding."""
    cdef Py_ssize_t j, panel = token // NV_PANEL, column = token % NV_PANEL
    cdef const uint32_t *pairs
    cdef const float *values
    cdef uint32_t *bits = <uint32_t *>out
    if m.embedding_f32 != NULL:
        memcpy(out, m.embedding_f32 + token * m.hidden_size, m.hidden_size * sizeof(float))
    elif m.embedding_bf16 != NULL:
        for j in range(m.hidden_size):
            bits[j] = <uint32_t>m.embedding_bf16[token * m.hidden_size + j] << 16
    elif m.lm_head.kind == NV_BF16:
        pairs = <const uint32_t *>m.lm_head.weight + panel * m.lm_head.k_padded // 2 * NV_PANEL + column
        for j in range(m.hidden_size):
            # The lower half of a pair is the even one; a float's lower 16 bits are zero.
            bits[j] = (pairs[j // 2 * NV_PANEL] << 16) if j % 2 == 0 else (pairs[j // 2 * NV_PANEL] >> 16) << 16
    else:
        values = <const float *>m.lm_head.weight + panel * m.lm_head.k_padded * NV_PANEL + column
        for j in range(m.hidden_size):
            out[j] = values[j * NV_PANEL]


cdef void embed_rows(step_t *s, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Fetch the rows' embeddings and their rotation angles."""
    cdef const model_t *m = s.m
    cdef Py_ssize_t row, j, half = m.head_dim // 2
    cdef float angle
    for row in range(begin, end):
        embed_row(m, s.token_ids[row], s.x + row * m.hidden_size)
        for j in range(half):
            angle = <float>s.positions[row] * m.inv_freq[j]
            s.cosines[row * half + j] = cosf(angle) * m.rope_scaling
            s.sines[row * half + j] = sinf(angle) * m.rope_scaling


cdef void norm_rows(const model_t *m, const float *x, const float *weight, const rows_t *to, Py_ssize_t row,
                    float *temp) noexcept nogil:
    """RMSNorm of one row of the residual stream, in the form that the next Linear reads."""
    cdef Py_ssize_t n = m.hidden_size
    if m.kind == NV_BF16:
        m.k.rms_norm(x, n, weight, temp, n, 1, n, m.eps)
        m.k.to_bf16(temp, <uint16_t *>to.x + row * to.ldx, n, to.ldx)
    elif m.kind == NV_INT8:
        # The norm's weight sits in the Linear, and its divisor goes into the row's scale: one pass less.
        (<float *>to.scale)[row] = m.k.to_int8(x, <int8_t *>to.x + row * to.ldx, n, to.ldx,
                                               m.k.inverse_rms(x, n, m.eps))
    else:
        m.k.rms_norm(x, n, weight, <float *>to.x + row * to.ldx, to.ldx, 1, n, m.eps)


cdef void store_kv(const model_t *m, const layer_t *layer, const float *k, const float *v, Py_ssize_t slot,
                   uint16_t *temp) noexcept nogil:
    """Write one row's keys and values into their slot of every KV head."""
    cdef Py_ssize_t dim = m.head_dim, block = slot // NV_BLOCK, offset = slot % NV_BLOCK, head, place, d
    cdef char *k_block
    cdef char *v_block
    cdef float *k_f32
    cdef uint16_t *k_bf16
    cdef uint16_t *v_bf16
    for head in range(m.num_kv_heads):
        place = block * m.num_kv_heads + head
        k_block, v_block = layer.k_cache + place * m.k_block_bytes, layer.v_cache + place * m.v_block_bytes
        if m.cache == NV_CACHE_INT8:
            m.k.store_int8(k + head * dim, v + head * dim, <int>dim, k_block, v_block, <int>offset, <uint8_t *>temp)
        elif m.cache == NV_CACHE_BF16:
            m.k.to_bf16(k + head * dim, temp, dim, dim)
            k_bf16 = <uint16_t *>k_block + offset * 2
            for d in range(dim):
                k_bf16[d // 2 * NV_BLOCK * 2 + d % 2] = temp[d]
            m.k.to_bf16(v + head * dim, temp, dim, dim)
            v_bf16 = <uint16_t *>v_block + offset // 2 * 2 * m.v_stride + offset % 2
            for d in range(dim):
                v_bf16[d * 2] = temp[d]
        else:
            k_f32 = <float *>k_block + offset
            for d in range(dim):
                k_f32[d * NV_BLOCK] = k[head * dim + d]
            memcpy(<float *>v_block + offset * m.v_stride, v + head * dim, dim * sizeof(float))


cdef void rotate_and_store(step_t *s, const layer_t *layer, Py_ssize_t begin, Py_ssize_t end,
                           uint16_t *temp) noexcept nogil:
    """Apply q/k norm and RoPE in place; write the rows' keys and values into the cache.

    For an int8 cache q and k are turned by one orthogonal matrix, which changes no product of theirs and spreads the
    few channels of large values that keys have over their neighbours.
    """
    cdef const model_t *m = s.m
    cdef Py_ssize_t dim = m.head_dim, half = dim // 2, row, head
    cdef Py_ssize_t stride = (m.num_heads + 2 * m.num_kv_heads) * dim
    cdef float *q
    cdef float *k
    for row in range(begin, end):
        q = s.qkv + row * stride
        k = q + m.num_heads * dim
        if layer.q_norm != NULL:
            m.k.rms_norm(q, dim, layer.q_norm, q, dim, m.num_heads, dim, m.eps)
            m.k.rms_norm(k, dim, layer.k_norm, k, dim, m.num_kv_heads, dim, m.eps)
        for head in range(m.num_heads + m.num_kv_heads):
            m.k.rope(q + head * dim, s.cosines + row * half, s.sines + row * half, dim)
        m.k.hadamard(q, (m.num_heads + m.num_kv_heads) * dim, m.key_block)
        store_kv(m, layer, k, k + m.num_kv_heads * dim, s.slots[row], temp)


cdef void quantize_row(const model_t *m, float *x, Py_ssize_t n, int block, const rows_t *to,
                       Py_ssize_t row) noexcept nogil:
    m.k.hadamard(x, n, block)
    (<float *>to.scale)[row] = m.k.to_int8(x, <int8_t *>to.x + row * to.ldx, n, to.ldx, 1.0)


cdef rows_t norm_input(step_t *s, const float *weight, Py_ssize_t begin, Py_ssize_t end, int tid) noexcept nogil:
    """RMSNorm of the residual stream, ready for the next Linear to read when this returns.

    A few rows are normed by every thread for itself, which costs less than waiting for each other.
    """
    cdef const model_t *m = s.m
    cdef char *scratch = s.thread_scratch + tid * s.scratch_stride
    cdef rows_t own = s.hidden_in
    cdef Py_ssize_t row
    if s.rows <= OWN_NORM_ROWS:
        own.x = scratch + s.own_rows_at
        own.scale = <float *>(scratch + s.own_scale_at)
        for row in range(s.rows):
            norm_rows(m, s.x + row * m.hidden_size, weight, &own, row, <float *>scratch)
        return own
    for row in range(begin, end):
        norm_rows(m, s.x + row * m.hidden_size, weight, &own, row, <float *>scratch)
    meet(s, PHASE_NORM, tid)
    return own
