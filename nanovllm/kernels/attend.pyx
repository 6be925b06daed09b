"""Attention of a step: its rows in tiles, and the tiles handed out to threads.

A tile is up to NV_ATTN_ROWS query rows that share one KV head; what the kernel does with it is in csrc/attention.h.
"""

from libc.stdint cimport int32_t, uint16_t

from nanovllm.kernels.isa cimport NV_ATTN_ROWS, NV_BF16, NV_BLOCK, nv_attention
from nanovllm.kernels.step cimport layer_t, model_t, step_t
from nanovllm.kernels.team cimport team_barrier


cdef extern from *:
    """
    static inline Py_ssize_t nv_fetch_add(Py_ssize_t *p) { return __atomic_fetch_add(p, 1, __ATOMIC_RELAXED); }
    """
    Py_ssize_t nv_fetch_add(Py_ssize_t *p) noexcept nogil


# The rows of one attention tile, and where the kernel finds them.
cdef struct tile_t:
    nv_attention a
    Py_ssize_t q_offset[NV_ATTN_ROWS]
    Py_ssize_t out_offset[NV_ATTN_ROWS]
    int32_t position[NV_ATTN_ROWS]
    Py_ssize_t row[NV_ATTN_ROWS]
    Py_ssize_t head[NV_ATTN_ROWS]


cdef void set_tile(step_t *s, const layer_t *layer, Py_ssize_t tile, Py_ssize_t kv_head, int tid,
                   tile_t *t) noexcept nogil:
    """A tile is up to NV_ATTN_ROWS consecutive (token, head) rows of one sequence and KV head."""
    cdef const model_t *m = s.m
    cdef nv_attention *a = &t.a
    cdef Py_ssize_t dim = m.head_dim, stride = (m.num_heads + 2 * m.num_kv_heads) * dim, out_stride = m.num_heads * dim
    cdef Py_ssize_t group = m.num_heads // m.num_kv_heads, low = 0, high = s.num_seqs - 1, middle, index, last, r
    cdef char *scratch = s.thread_scratch + tid * s.scratch_stride
    while low < high:  # the sequence whose tiles contain this one
        middle = (low + high + 1) // 2
        if s.task_start[middle] <= tile:
            low = middle
        else:
            high = middle - 1
    index = (tile - s.task_start[low]) * NV_ATTN_ROWS
    last = (s.cu_seqlens_q[low + 1] - s.cu_seqlens_q[low]) * group
    a.num_rows = <int>min(NV_ATTN_ROWS, last - index)
    for r in range(a.num_rows):
        t.row[r] = s.cu_seqlens_q[low] + (index + r) // group
        t.head[r] = kv_head * group + (index + r) % group
        t.q_offset[r] = t.row[r] * stride + t.head[r] * dim
        t.out_offset[r] = r * dim if m.kind == NV_BF16 else t.row[r] * out_stride + t.head[r] * dim
        t.position[r] = s.positions[t.row[r]]
    a.q, a.out = s.qkv, <float *>scratch if m.kind == NV_BF16 else s.attn
    a.q_offset, a.out_offset, a.position = t.q_offset, t.out_offset, t.position
    a.head_dim, a.v_stride, a.is_bf16 = m.head_dim, m.v_stride, m.cache_is_bf16
    a.window, a.scale = layer.window, m.scale
    a.k_block_stride = m.num_kv_heads * dim * NV_BLOCK
    a.v_block_stride = m.num_kv_heads * NV_BLOCK * <Py_ssize_t>m.v_stride
    a.k_cache = layer.k_cache + kv_head * dim * NV_BLOCK * m.cache_bytes
    a.v_cache = layer.v_cache + kv_head * NV_BLOCK * m.v_stride * m.cache_bytes
    a.block_table = s.block_tables + low * s.block_table_stride
    a.scratch = <float *>(scratch + s.attention_at)


cdef void finish_tile(step_t *s, const tile_t *t) noexcept nogil:
    """Round a tile's output to what o reads; for the other kinds it is in place already."""
    cdef Py_ssize_t dim = s.m.head_dim, r
    if s.m.kind == NV_BF16:
        for r in range(t.a.num_rows):
            s.m.k.to_bf16(t.a.out + r * dim, <uint16_t *>s.attn_in.x + t.row[r] * s.attn_in.ldx + t.head[r] * dim,
                          dim, dim)


cdef void attend(step_t *s, const layer_t *layer, int tid) noexcept nogil:
    """Take attention tasks until none is left."""
    cdef const model_t *m = s.m
    cdef Py_ssize_t tiles = s.task_start[s.num_seqs], heads = m.num_kv_heads, task, tile
    cdef tile_t t
    if s.num_pieces > 0:  # few tiles, many keys: the pieces of each are tasks of their own
        while True:
            task = nv_fetch_add(&s.next_task)
            if task >= tiles * heads * s.num_pieces:
                break
            tile = task // s.num_pieces
            set_tile(s, layer, tile // heads, tile % heads, tid, &t)
            m.k.attention_part(&t.a, <int>(task % s.num_pieces), s.parts + task * s.part_size)
        team_barrier(m.team)
        while True:
            tile = nv_fetch_add(&s.next_merge)
            if tile >= tiles * heads:
                return
            set_tile(s, layer, tile // heads, tile % heads, tid, &t)
            m.k.attention_merge(&t.a, s.parts + tile * s.num_pieces * s.part_size)
            finish_tile(s, &t)
    while True:
        task = nv_fetch_add(&s.next_task)
        if task >= tiles * heads:
            return
        # The last tiles of a long prefill see the most keys: hand them out first, so that no thread ends up alone.
        set_tile(s, layer, tiles - 1 - task // heads, task % heads, tid, &t)
        m.k.attention(&t.a)
        finish_tile(s, &t)
