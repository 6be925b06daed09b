"""The decoder: every layer of one step in a single call without the GIL, by one team of threads.

All families that we serve are one skeleton with optional parts, so the forward pass is written once over an array of
layer structs whose optional pointers may be NULL. Rows of prefill and decode share every matrix product. A step is one
`team_run`; the threads meet at a barrier between two operators and never return to Python between layers.

This module knows arrays. It has never heard of checkpoints, sequences or text.
"""

import numpy as np

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.math cimport INFINITY, cosf, sinf
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from libc.stdint cimport int8_t, int32_t, int64_t, uint16_t, uint32_t
from libc.string cimport memcpy

from nanovllm.kernels.isa cimport (
    NV_ADD, NV_ATTN_ROWS, NV_BF16, NV_BLAS_F32, NV_BLOCK, NV_F32, NV_INT8, NV_PANEL, NV_PIECE, NV_SILU_MUL,
    NV_SILU_MUL_BF16, NV_STORE, NV_V_ALIGN, kernels, nv_attention, nv_attention_part, nv_attention_scratch, nv_best,
    nv_gemm_scratch, nv_k_padded, nv_kernels, nv_linear,
)
from nanovllm.kernels.linear cimport Linear, head_run, linear_run, rows_t
from nanovllm.kernels.team cimport Team, nv_team, team_barrier, team_run

from nanovllm.kernels import memory

BLOCK_SIZE = NV_BLOCK


def padded_head_dim(int head_dim):
    """Width of a value row in the KV cache: whole vectors of every level."""
    return (head_dim + NV_V_ALIGN - 1) // NV_V_ALIGN * NV_V_ALIGN


cdef extern from *:
    """
    static inline Py_ssize_t nv_fetch_add(Py_ssize_t *p) { return __atomic_fetch_add(p, 1, __ATOMIC_RELAXED); }
    """
    Py_ssize_t nv_fetch_add(Py_ssize_t *p) noexcept nogil


cdef enum:
    # Most rows of a step that every thread norms for itself: the norm of a row takes about as long as a barrier.
    OWN_NORM_ROWS = 4


# What the time of a step is booked under, when somebody asks. Waiting at the barrier after an operator is its own time.
cdef enum:
    PHASE_EMBED
    PHASE_NORM
    PHASE_QKV
    PHASE_ROPE
    PHASE_ATTENTION
    PHASE_O
    PHASE_GATE_UP
    PHASE_ACTIVATION
    PHASE_DOWN
    PHASE_HEAD
    NUM_PHASES

PHASES = ("embed", "norm", "qkv", "rope_and_store", "attention", "o", "gate_up", "activation", "down", "lm_head")


# Pointers are NULL where the family has no such part.
cdef struct layer_t:
    const float *input_norm       # [hidden_size]
    const float *post_norm        # [hidden_size]
    const float *q_norm           # [head_dim]
    const float *k_norm           # [head_dim]
    const nv_linear *qkv          # q, k and v rows stacked
    const nv_linear *o
    const nv_linear *gate_up      # a gated pair; with BLAS gate and up rows stacked
    const nv_linear *down
    int window                    # 0: full attention
    char *k_cache                 # block 0; layouts in csrc/kernels.h
    char *v_cache


cdef struct model_t:
    int num_layers
    Py_ssize_t hidden_size
    Py_ssize_t intermediate_size
    int num_heads
    int num_kv_heads
    int head_dim
    int v_stride
    int cache_is_bf16
    Py_ssize_t cache_bytes        # of one element of the KV cache
    float eps
    float scale
    float rope_scaling            # multiplies cos and sin (YaRN and LongRoPE attention factor)
    const float *inv_freq         # [head_dim / 2]
    int kind                      # of every Linear: what form activations take between operators
    int hadamard_block            # int8: down's input is rotated in blocks of this; 1: not
    const float *embedding_f32    # [vocab_size, hidden_size], or
    const uint16_t *embedding_bf16  # the same as bfloat16, or both NULL: read out of the tied, packed lm_head
    const float *final_norm       # [hidden_size]
    const nv_linear *lm_head
    layer_t *layers
    const nv_kernels *k
    nv_team *team


# One step: what the batch gives, and scratch for its rows.
cdef struct step_t:
    const model_t *m
    Py_ssize_t rows
    Py_ssize_t num_seqs
    const int32_t *token_ids      # [rows]
    const int32_t *positions      # [rows]
    const int64_t *slots          # [rows] block id * NV_BLOCK + offset
    const int32_t *cu_seqlens_q   # [num_seqs + 1]
    const int32_t *block_tables   # [num_seqs, block_table_stride]
    Py_ssize_t block_table_stride
    Py_ssize_t *task_start        # [num_seqs + 1] attention tiles before each sequence, for one KV head
    Py_ssize_t next_task
    Py_ssize_t next_merge
    Py_ssize_t num_pieces         # 0: a tile is one task; else its pieces are, and come together in `parts`
    float *parts                  # [tiles, num_kv_heads, num_pieces, part_size]
    Py_ssize_t part_size
    float *x                      # [rows, hidden_size] residual stream
    float *qkv                    # [rows, (num_heads + 2 num_kv_heads) head_dim]
    float *attn                   # [rows, num_heads head_dim]; unused with bfloat16
    float *inter                  # [rows, intermediate_size], twice as wide with BLAS; unused with bfloat16
    float *cosines                # [rows, head_dim / 2]
    float *sines
    rows_t hidden_in              # what qkv, gate_up and lm_head read
    rows_t attn_in                # what o reads
    rows_t inter_in               # what down reads
    char *thread_scratch          # [num_threads, scratch_stride] bytes: norm rows, attention, GEMM
    Py_ssize_t scratch_stride
    double *phase_s               # [NUM_PHASES] seconds, or NULL
    double phase_began
    Py_ssize_t attention_at       # offsets of the parts in a thread's scratch
    Py_ssize_t gemm_at
    Py_ssize_t own_rows_at        # normed rows of this thread alone, when there are few
    Py_ssize_t own_scale_at


cdef double seconds() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + 1e-9 * now.tv_nsec


cdef void meet(step_t *s, int phase, int tid) noexcept nogil:
    """Wait for the other threads at the end of an operator, and book its time."""
    cdef double now
    team_barrier(s.m.team)
    if tid == 0 and s.phase_s != NULL:
        now = seconds()
        s.phase_s[phase] += now - s.phase_began
        s.phase_began = now


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
    cdef Py_ssize_t k_at, v_at
    cdef float *k_f32
    cdef uint16_t *k_bf16
    cdef uint16_t *v_bf16
    for head in range(m.num_kv_heads):
        place = block * m.num_kv_heads + head
        k_at, v_at = place * dim * NV_BLOCK * m.cache_bytes, place * NV_BLOCK * m.v_stride * m.cache_bytes
        if m.cache_is_bf16:
            m.k.to_bf16(k + head * dim, temp, dim, dim)
            k_bf16 = <uint16_t *>(layer.k_cache + k_at) + offset * 2
            for d in range(dim):
                k_bf16[d // 2 * NV_BLOCK * 2 + d % 2] = temp[d]
            m.k.to_bf16(v + head * dim, temp, dim, dim)
            v_bf16 = <uint16_t *>(layer.v_cache + v_at) + offset // 2 * 2 * m.v_stride + offset % 2
            for d in range(dim):
                v_bf16[d * 2] = temp[d]
        else:
            k_f32 = <float *>(layer.k_cache + k_at) + offset
            for d in range(dim):
                k_f32[d * NV_BLOCK] = k[head * dim + d]
            memcpy(<float *>(layer.v_cache + v_at) + offset * m.v_stride, v + head * dim, dim * sizeof(float))


cdef void rotate_and_store(step_t *s, const layer_t *layer, Py_ssize_t begin, Py_ssize_t end,
                           uint16_t *temp) noexcept nogil:
    """Apply q/k norm and RoPE in place; write the rows' keys and values into the cache."""
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
        store_kv(m, layer, k, k + m.num_kv_heads * dim, s.slots[row], temp)


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


cdef void run_layer(step_t *s, const layer_t *layer, Py_ssize_t begin, Py_ssize_t end, int tid, int n) noexcept nogil:
    """One transformer layer; rows [begin, end) are this thread's in the operators that go by rows."""
    cdef const model_t *m = s.m
    cdef Py_ssize_t hidden = m.hidden_size, row
    cdef Py_ssize_t qkv_width = (m.num_heads + 2 * m.num_kv_heads) * m.head_dim, attn_width = m.num_heads * m.head_dim
    cdef char *scratch = s.thread_scratch + tid * s.scratch_stride
    cdef void *gemm_scratch = scratch + s.gemm_at
    cdef rows_t rows = norm_input(s, layer.input_norm, begin, end, tid)
    linear_run(layer.qkv, &rows, s.qkv, qkv_width, NV_STORE, gemm_scratch, tid, n)
    meet(s, PHASE_QKV, tid)
    rotate_and_store(s, layer, begin, end, <uint16_t *>scratch)
    if tid == 0:
        s.next_task = s.next_merge = 0
    meet(s, PHASE_ROPE, tid)
    attend(s, layer, tid)
    meet(s, PHASE_ATTENTION, tid)
    if m.kind == NV_INT8:
        for row in range(begin, end):
            quantize_row(m, s.attn + row * attn_width, attn_width, 1, &s.attn_in, row)
        meet(s, PHASE_ACTIVATION, tid)
    linear_run(layer.o, &s.attn_in, s.x, hidden, NV_ADD, gemm_scratch, tid, n)
    meet(s, PHASE_O, tid)
    rows = norm_input(s, layer.post_norm, begin, end, tid)
    run_mlp(s, layer, &rows, begin, end, gemm_scratch, tid, n)
    meet(s, PHASE_DOWN, tid)


cdef void run_mlp(step_t *s, const layer_t *layer, const rows_t *rows, Py_ssize_t begin, Py_ssize_t end,
                  void *gemm_scratch, int tid, int n) noexcept nogil:
    """down(silu(gate(rows)) * up(rows)), added to the residual stream."""
    cdef const model_t *m = s.m
    cdef Py_ssize_t inter = m.intermediate_size, row
    cdef float *x
    if m.kind == NV_BF16:
        linear_run(layer.gate_up, rows, <void *>s.inter_in.x, s.inter_in.ldx, NV_SILU_MUL_BF16, gemm_scratch,
                   tid, n)
    elif m.kind == NV_BLAS_F32:
        linear_run(layer.gate_up, rows, s.inter, 2 * inter, NV_STORE, gemm_scratch, tid, n)
        meet(s, PHASE_GATE_UP, tid)
        for row in range(begin, end):
            x = s.inter + row * 2 * inter
            m.k.silu_mul(x, x + inter, x, inter)
    else:
        linear_run(layer.gate_up, rows, s.inter, inter, NV_SILU_MUL, gemm_scratch, tid, n)
    meet(s, PHASE_ACTIVATION if m.kind == NV_BLAS_F32 else PHASE_GATE_UP, tid)
    if m.kind == NV_INT8:
        for row in range(begin, end):
            quantize_row(m, s.inter + row * inter, inter, m.hadamard_block, &s.inter_in, row)
        meet(s, PHASE_ACTIVATION, tid)
    linear_run(layer.down, &s.inter_in, s.x, m.hidden_size, NV_ADD, gemm_scratch, tid, n)


cdef void step_member(void *arg, int tid, int n) noexcept nogil:
    cdef step_t *s = <step_t *>arg
    cdef Py_ssize_t begin = s.rows * tid // n, end = s.rows * (tid + 1) // n
    cdef int i
    if tid == 0 and s.phase_s != NULL:
        s.phase_began = seconds()
    embed_rows(s, begin, end)
    if s.rows <= OWN_NORM_ROWS or s.phase_s != NULL:  # else rows are their owner's until the first product
        meet(s, PHASE_EMBED, tid)
    for i in range(s.m.num_layers):
        run_layer(s, &s.m.layers[i], begin, end, tid, n)


cdef struct head_job_t:
    step_t *s
    const int32_t *rows           # [num_rows] rows of the last step
    Py_ssize_t num_rows
    Py_ssize_t greedy_rows        # so many first rows only want their best id
    nv_best *best                 # [num_threads, greedy_rows]
    int32_t *best_ids             # [greedy_rows]
    float *logits                 # [num_rows - greedy_rows, vocab_size]
    const int32_t *targets        # [num_rows] or NULL
    float *logprobs               # [num_rows]


cdef void merge_best(head_job_t *job, Py_ssize_t begin, Py_ssize_t end, int n) noexcept nogil:
    """The best id of each row over all threads' columns, which ascend with the thread: ties keep the lowest id."""
    cdef Py_ssize_t row
    cdef int tid
    cdef nv_best best
    cdef nv_best other
    for row in range(begin, end):
        best = job.best[row]
        for tid in range(1, n):
            other = job.best[tid * job.greedy_rows + row]
            if best.id == -2 or other.id == -2:
                best.id = -2
            elif other.id >= 0 and (best.id < 0 or other.value > best.value):
                best = other
        job.best_ids[row] = best.id if best.id >= 0 else -1


cdef void head_member(void *arg, int tid, int n) noexcept nogil:
    cdef head_job_t *job = <head_job_t *>arg
    cdef step_t *s = job.s
    cdef const model_t *m = s.m
    cdef Py_ssize_t begin = job.num_rows * tid // n, end = job.num_rows * (tid + 1) // n, row
    cdef Py_ssize_t vocab = m.lm_head.n
    cdef char *scratch = s.thread_scratch + tid * s.scratch_stride
    cdef nv_best *best = job.best + tid * job.greedy_rows
    cdef rows_t rows = s.hidden_in
    cdef float top
    cdef double log_sum
    rows.count = job.num_rows
    if tid == 0 and s.phase_s != NULL:
        s.phase_began = seconds()
    for row in range(begin, end):
        norm_rows(m, s.x + job.rows[row] * m.hidden_size, m.final_norm, &rows, row, <float *>scratch)
    for row in range(job.greedy_rows):
        best[row].value, best[row].id = -INFINITY, -1
    team_barrier(m.team)
    if m.kind == NV_BLAS_F32:
        linear_run(m.lm_head, &rows, job.logits, vocab, NV_STORE, scratch + s.gemm_at, tid, n)
    else:
        head_run(m.lm_head, &rows, job.logits, vocab, job.greedy_rows, best, scratch + s.gemm_at, tid, n)
    if job.greedy_rows > 0 or job.targets != NULL or s.phase_s != NULL:
        meet(s, PHASE_HEAD, tid)
    merge_best(job, job.greedy_rows * tid // n, job.greedy_rows * (tid + 1) // n, n)
    if job.targets == NULL:
        return
    for row in range(begin, end):
        m.k.log_sum_exp(job.logits + row * vocab, vocab, &top, &log_sum)
        job.logprobs[row] = <float>(job.logits[row * vocab + job.targets[row]] - log_sum)


cdef class Decoder:
    """A model's weights, its paged KV cache and the scratch of a step.

    Args:
        team: the threads.
        spec: any object with hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, head_dim,
            rms_norm_eps, sliding_windows (one for each layer, 0 = full).
        inv_freq: [head_dim / 2] float32; rope_scaling: factor of cos and sin.
        embedding: [vocab_size, hidden_size] float32 or uint16 (bfloat16 bits), or None: tied to the packed lm_head.
        final_norm: [hidden_size] float32; lm_head: Linear.
        layers: one dict a layer with float32 arrays input_norm, post_norm, q_norm, k_norm (None where absent) and
            Linears qkv, o, gate_up, down, all of one kind; gate_up is gated unless that kind is "blas".
        num_blocks: KV blocks of BLOCK_SIZE positions for every layer.
        max_rows: most token rows of one step (sizes the scratch).
        hadamard_block: the int8 scheme's rotation of down's input.
    """

    cdef model_t m
    cdef step_t s
    cdef Team team
    cdef list keep
    cdef Py_ssize_t max_rows
    cdef object phases
    cdef readonly Py_ssize_t vocab_size
    cdef readonly Py_ssize_t num_blocks
    cdef readonly object k_cache
    cdef readonly object v_cache

    def __cinit__(self, Team team, spec, inv_freq, float rope_scaling, embedding, final_norm, Linear lm_head, layers,
                  Py_ssize_t num_blocks, Py_ssize_t max_rows, int hadamard_block=1):
        if num_blocks < 1 or max_rows < 1:
            raise ValueError(f"num_blocks and max_rows must be positive, found {num_blocks} and {max_rows}")
        self.team, self.keep = team, [layers, lm_head]
        self.num_blocks, self.max_rows = num_blocks, max_rows
        self._set_sizes(spec, rope_scaling)
        self.m.team, self.m.k = team.ptr, kernels()
        self.m.inv_freq = self._vector(inv_freq, self.m.head_dim // 2, "inv_freq")
        self.m.final_norm = self._vector(final_norm, self.m.hidden_size, "final_norm")
        self.vocab_size = lm_head.c.n
        self.m.kind, self.m.hadamard_block = lm_head.c.kind, hadamard_block
        self._check(lm_head, self.vocab_size, self.m.hidden_size, "lm_head")
        self.m.lm_head = &lm_head.c
        self._set_embedding(embedding)
        self.m.cache_is_bf16 = self.m.kind in (NV_BF16, NV_INT8)
        self.m.cache_bytes = 2 if self.m.cache_is_bf16 else 4
        self._set_cache()
        self.m.layers = <layer_t *>PyMem_Calloc(self.m.num_layers, sizeof(layer_t))
        if self.m.layers == NULL:
            raise MemoryError("no memory for the table of layers")
        if len(layers) != self.m.num_layers:
            raise ValueError(f"{len(layers)} layers given, sliding_windows names {self.m.num_layers}")
        for i, layer in enumerate(layers):
            self._set_layer(i, layer, spec.sliding_windows[i])
        self._set_scratch()

    def __dealloc__(self):
        PyMem_Free(self.m.layers)

    def _set_sizes(self, spec, float rope_scaling):
        self.m.num_layers = len(spec.sliding_windows)
        self.m.hidden_size, self.m.intermediate_size = spec.hidden_size, spec.intermediate_size
        self.m.num_heads, self.m.num_kv_heads = spec.num_attention_heads, spec.num_key_value_heads
        self.m.head_dim = spec.head_dim
        self.m.v_stride = padded_head_dim(spec.head_dim)
        self.m.eps = spec.rms_norm_eps
        self.m.scale = spec.head_dim ** -0.5
        self.m.rope_scaling = rope_scaling

    cdef const float *_vector(self, array, Py_ssize_t size, name) except NULL:
        cdef const float[::1] view = array
        if view.shape[0] != size:
            raise ValueError(f"{name} has {view.shape[0]} elements, expected {size}")
        self.keep.append(array)
        return &view[0]

    cdef int _check(self, Linear linear, Py_ssize_t n, Py_ssize_t k, name) except -1:
        if linear.c.n != n or linear.c.k != k:
            raise ValueError(f"{name} has shape {linear.shape}, expected {n, k}")
        if linear.c.kind != self.m.kind:
            raise ValueError(f"{name} is of kind {linear.kind}, the other Linears are not")
        return 0

    def _set_embedding(self, embedding):
        cdef const float[:, ::1] wide
        cdef const uint16_t[:, ::1] narrow
        if embedding is None:
            if self.m.kind not in (NV_F32, NV_BF16):
                raise ValueError("only a packed float32 or bfloat16 lm_head can serve as the embedding")
            return
        if embedding.shape[0] < self.vocab_size or embedding.shape[1] != self.m.hidden_size:
            raise ValueError(f"embedding has shape {embedding.shape}, expected {self.vocab_size, self.m.hidden_size}")
        self.keep.append(embedding)
        if embedding.dtype == np.uint16:
            narrow = embedding
            self.m.embedding_bf16 = &narrow[0, 0]
        else:
            wide = embedding
            self.m.embedding_f32 = &wide[0, 0]

    def _set_cache(self):
        shape = (self.m.num_layers, self.num_blocks, self.m.num_kv_heads)
        # Pages come from the system on first touch: a cache that is never filled costs no memory.
        dtype = np.uint16 if self.m.cache_is_bf16 else np.float32
        count, size = self.m.num_layers * self.num_blocks * self.m.num_kv_heads, self.m.cache_bytes
        keys, values = self.m.head_dim * NV_BLOCK, NV_BLOCK * self.m.v_stride
        self.k_cache = memory.zeros(count * keys * size).view(dtype).reshape(*shape, keys)
        self.v_cache = memory.zeros(count * values * size).view(dtype).reshape(*shape, values)

    def _set_layer(self, int i, dict weights, int window):
        cdef layer_t *layer = &self.m.layers[i]
        cdef Linear qkv = weights["qkv"], o = weights["o"], gate_up = weights["gate_up"], down = weights["down"]
        cdef Py_ssize_t heads = self.m.num_heads, kv_heads = self.m.num_kv_heads, dim = self.m.head_dim
        cdef char[:, ::1] k_cache = self.k_cache.view(np.int8).reshape(self.m.num_layers, -1)
        cdef char[:, ::1] v_cache = self.v_cache.view(np.int8).reshape(self.m.num_layers, -1)
        self._check(qkv, (heads + 2 * kv_heads) * dim, self.m.hidden_size, f"layer {i} qkv")
        self._check(o, self.m.hidden_size, heads * dim, f"layer {i} o")
        stacked = 1 if gate_up.c.gated else 2
        self._check(gate_up, stacked * self.m.intermediate_size, self.m.hidden_size, f"layer {i} gate_up")
        if gate_up.c.gated == (self.m.kind == NV_BLAS_F32):
            raise ValueError(f"layer {i} gate_up: gate and up are a gated pair, except with BLAS")
        self._check(down, self.m.hidden_size, self.m.intermediate_size, f"layer {i} down")
        layer.qkv, layer.o, layer.gate_up, layer.down = &qkv.c, &o.c, &gate_up.c, &down.c
        layer.input_norm = self._vector(weights["input_norm"], self.m.hidden_size, f"layer {i} input_norm")
        layer.post_norm = self._vector(weights["post_norm"], self.m.hidden_size, f"layer {i} post_norm")
        if weights["q_norm"] is not None:
            layer.q_norm = self._vector(weights["q_norm"], dim, f"layer {i} q_norm")
            layer.k_norm = self._vector(weights["k_norm"], dim, f"layer {i} k_norm")
        layer.window = window
        layer.k_cache, layer.v_cache = &k_cache[i, 0], &v_cache[i, 0]

    cdef void *_buffer(self, Py_ssize_t count, Py_ssize_t itemsize) except NULL:
        """Zeroed memory on a cache line; pages that no step touches cost nothing."""
        array = np.zeros(count * itemsize + 63, np.uint8)
        cdef unsigned char[::1] view = array
        self.keep.append(array)
        return <void *>((<size_t>&view[0] + 63) // 64 * 64)

    cdef _set_rows(self, rows_t *rows, Py_ssize_t width, float *shared):
        """Where a Linear's input rows lie: in `shared` for the float32 kinds, else in a buffer of their own."""
        cdef Py_ssize_t padded = nv_k_padded(self.m.kind, width)
        rows.ldx, rows.x, rows.scale = padded, shared, NULL
        if self.m.kind == NV_BF16:
            rows.x = self._buffer(self.max_rows * padded, 2)
        elif self.m.kind == NV_INT8:
            rows.x = self._buffer(self.max_rows * padded, 1)
            rows.scale = <float *>self._buffer(self.max_rows, sizeof(float))

    def _set_scratch(self):
        cdef Py_ssize_t dim = self.m.head_dim, rows = self.max_rows, size = sizeof(float)
        cdef Py_ssize_t heads = self.m.num_heads, kv_heads = self.m.num_kv_heads
        cdef Py_ssize_t hidden = self.m.hidden_size, inter = self.m.intermediate_size, temp
        cdef bint is_float = self.m.kind in (NV_F32, NV_BLAS_F32)
        cdef float *normed = <float *>self._buffer(rows * hidden, size) if is_float else NULL
        self.s.m = &self.m
        self.s.x = <float *>self._buffer(rows * hidden, size)
        self.s.qkv = <float *>self._buffer(rows * (heads + 2 * kv_heads) * dim, size)
        self.s.attn = <float *>self._buffer(rows * heads * dim, size)
        self.s.inter = <float *>self._buffer(rows * (2 * inter if self.m.kind == NV_BLAS_F32 else inter), size)
        self.s.cosines = <float *>self._buffer(rows * (dim // 2), size)
        self.s.sines = <float *>self._buffer(rows * (dim // 2), size)
        self._set_rows(&self.s.hidden_in, hidden, normed)
        self._set_rows(&self.s.attn_in, heads * dim, self.s.attn)
        self._set_rows(&self.s.inter_in, inter, self.s.inter)
        if self.m.kind == NV_BLAS_F32:
            self.s.inter_in.ldx = 2 * inter
        # Each part on a cache line of its own; `temp` holds a normed row or one tile of attention output.
        temp = (max(hidden, NV_ATTN_ROWS * dim) * size + 63) // 64 * 64
        self.s.attention_at = temp
        self.s.gemm_at = temp + (<Py_ssize_t>nv_attention_scratch(self.m.head_dim) * size + 63) // 64 * 64
        widest = max(nv_k_padded(self.m.kind, width) for width in (hidden, heads * dim, inter))
        self.s.own_rows_at = self.s.gemm_at + (<Py_ssize_t>nv_gemm_scratch(widest) + 63) // 64 * 64
        self.s.own_scale_at = self.s.own_rows_at + (OWN_NORM_ROWS * self.s.hidden_in.ldx * size + 63) // 64 * 64
        self.s.scratch_stride = self.s.own_scale_at + 64
        self.s.thread_scratch = <char *>self._buffer(self.team.num_threads * self.s.scratch_stride, 1)

    def forward(self, const int32_t[::1] token_ids, const int32_t[::1] positions, const int64_t[::1] slot_mapping,
                const int32_t[::1] cu_seqlens_q, const int32_t[:, ::1] block_tables):
        """Run all layers over one step's rows; the rows' hidden states stay here for `logits`.

        Args:
            token_ids: [num_rows]; positions: [num_rows]; slot_mapping: [num_rows].
            cu_seqlens_q: [num_seqs + 1] rows before each sequence; a sequence's rows are consecutive positions.
            block_tables: [num_seqs, max_blocks] block ids, enough for each sequence's last position.

        Raises:
            ValueError: an array does not fit the others, or an index is out of range.
        """
        cdef Py_ssize_t rows = token_ids.shape[0], num_seqs = cu_seqlens_q.shape[0] - 1
        if rows == 0:
            return
        self.team.check_process()
        self._check_step(token_ids, positions, slot_mapping, cu_seqlens_q, block_tables)
        cdef Py_ssize_t group = self.m.num_heads // self.m.num_kv_heads, i
        task_start = np.zeros(num_seqs + 1, np.intp)
        cdef Py_ssize_t[::1] tiles = task_start
        for i in range(num_seqs):
            tiles[i + 1] = tiles[i] + ((cu_seqlens_q[i + 1] - cu_seqlens_q[i]) * group + NV_ATTN_ROWS - 1) \
                // NV_ATTN_ROWS
        self.s.rows, self.s.num_seqs = rows, num_seqs
        self.s.hidden_in.count = self.s.attn_in.count = self.s.inter_in.count = rows
        self.s.token_ids, self.s.positions, self.s.slots = &token_ids[0], &positions[0], &slot_mapping[0]
        self.s.cu_seqlens_q = &cu_seqlens_q[0]
        self.s.block_tables, self.s.block_table_stride = &block_tables[0, 0], block_tables.shape[1]
        self.s.task_start = &tiles[0]
        parts = self._split_pieces(tiles[num_seqs] * self.m.num_kv_heads, max(positions))
        cdef float[::1] parts_view = parts
        self.s.parts = &parts_view[0]
        with nogil:
            team_run(self.m.team, step_member, &self.s)

    def _split_pieces(self, Py_ssize_t tiles, Py_ssize_t last_position):
        """Decide whether the pieces of a tile are tasks of their own, and give memory for their parts."""
        self.s.part_size = nv_attention_part(self.m.head_dim)
        self.s.num_pieces = last_position // NV_PIECE + 1
        # Enough tiles keep every thread busy, and one piece is nothing to share.
        if self.s.num_pieces == 1 or tiles >= 8 * self.team.num_threads or self.team.num_threads == 1:
            self.s.num_pieces = 0
        return np.empty(max(1, tiles * self.s.num_pieces * self.s.part_size), np.float32)

    cdef int _check_step(self, const int32_t[::1] token_ids, const int32_t[::1] positions,
                         const int64_t[::1] slot_mapping, const int32_t[::1] cu_seqlens_q,
                         const int32_t[:, ::1] block_tables) except -1:
        """Refuse what would read or write outside the arrays; linear in the rows, so its cost is nothing."""
        cdef Py_ssize_t rows = token_ids.shape[0], num_seqs = cu_seqlens_q.shape[0] - 1, i, row, blocks
        cdef Py_ssize_t slots = self.num_blocks * NV_BLOCK
        if rows > self.max_rows:
            raise ValueError(f"{rows} rows in one step, the scratch was made for {self.max_rows}")
        if positions.shape[0] != rows or slot_mapping.shape[0] != rows or block_tables.shape[0] != num_seqs:
            raise ValueError(f"token_ids has {rows} rows, positions {positions.shape[0]}, slot_mapping "
                             f"{slot_mapping.shape[0]}; {num_seqs} sequences, {block_tables.shape[0]} block tables")
        if num_seqs < 1 or cu_seqlens_q[0] != 0 or cu_seqlens_q[num_seqs] != rows:
            raise ValueError(f"cu_seqlens_q must go from 0 to {rows}")
        for row in range(rows):
            if not 0 <= token_ids[row] < self.vocab_size:
                raise ValueError(f"token id {token_ids[row]} in row {row} is outside the vocabulary of "
                                 f"{self.vocab_size}")
            if not 0 <= slot_mapping[row] < slots:
                raise ValueError(f"slot {slot_mapping[row]} in row {row} is outside the cache of {slots}")
        for i in range(num_seqs):
            if not cu_seqlens_q[i] < cu_seqlens_q[i + 1] <= rows:
                raise ValueError(f"sequence {i} of the step has no rows, or more than there are")
            for row in range(cu_seqlens_q[i], cu_seqlens_q[i + 1]):
                if positions[row] < 0 or positions[row] - positions[cu_seqlens_q[i]] != row - cu_seqlens_q[i]:
                    raise ValueError(f"positions of sequence {i} of the step are not consecutive from 0 up")
            blocks = positions[cu_seqlens_q[i + 1] - 1] // NV_BLOCK + 1
            if blocks > block_tables.shape[1]:
                raise ValueError(f"sequence {i} needs {blocks} blocks, its table has room for {block_tables.shape[1]}")
            for row in range(blocks):
                if not 0 <= block_tables[i, row] < self.num_blocks:
                    raise ValueError(f"block {block_tables[i, row]} of sequence {i} is outside the cache of "
                                     f"{self.num_blocks}")
        return 0

    def profile(self, enable=True):
        """Begin (or end) booking each step's time by operator; returns the seconds booked before, by name."""
        booked = {}
        if self.phases is not None:
            booked = dict(zip(PHASES, self.phases.tolist(), strict=True))
        self.phases = np.zeros(NUM_PHASES) if enable else None
        cdef double[::1] view = self.phases
        self.s.phase_s = &view[0] if enable else NULL
        return booked

    def hidden(self, Py_ssize_t num_rows):
        """A copy [num_rows, hidden_size] of the residual stream after the last layer, before the final norm."""
        if not 0 < num_rows <= self.s.rows:
            raise ValueError(f"the last step had {self.s.rows} rows, asked for {num_rows}")
        return np.array(<float[:num_rows, :self.m.hidden_size]>self.s.x)

    @property
    def can_take_best(self):
        """Whether `head` can find best ids without writing logits: every kind but BLAS."""
        return self.m.kind != NV_BLAS_F32

    def logits(self, const int32_t[::1] rows, float[:, ::1] out):
        """out [num_rows, vocab_size] = logits of the given rows of the last step."""
        self._run_head(rows, out, None, None, None)

    def head(self, const int32_t[::1] rows, int32_t[::1] best_ids, float[:, ::1] logits):
        """Best ids of the first rows, full logits of the others, in one pass over the lm_head.

        Args:
            rows: rows of the last step. best_ids: written for as many first rows as it has elements; -1 where a logit
                was NaN or infinite. logits: [at least the other rows, vocab_size], written.
        """
        self._run_head(rows, logits, best_ids, None, None)

    def token_logprobs(self, const int32_t[::1] rows, const int32_t[::1] targets, float[::1] out,
                       float[:, ::1] scratch):
        """out[i] = log p(targets[i]) after row rows[i]; scratch [at least 1, vocab_size] bounds the memory."""
        cdef Py_ssize_t begin, step = scratch.shape[0]
        if targets.shape[0] != rows.shape[0] or out.shape[0] != rows.shape[0] or step == 0:
            raise ValueError(f"{rows.shape[0]} rows, {targets.shape[0]} targets, {out.shape[0]} results, "
                             f"{step} rows of scratch")
        for begin in range(0, rows.shape[0], step):
            end = min(begin + step, rows.shape[0])
            self._run_head(rows[begin:end], scratch[:end - begin], None, targets[begin:end], out[begin:end])

    def _run_head(self, const int32_t[::1] rows, float[:, ::1] logits, int32_t[::1] best_ids,
                  const int32_t[::1] targets, float[::1] logprobs):
        cdef Py_ssize_t num_rows = rows.shape[0], greedy = 0 if best_ids is None else best_ids.shape[0], i
        cdef head_job_t job
        if num_rows == 0:
            return
        if num_rows > self.max_rows or greedy > num_rows or (greedy and not self.can_take_best):
            raise ValueError(f"{num_rows} rows of logits, {greedy} of them best ids: the scratch was made for "
                             f"{self.max_rows} rows")
        if logits.shape[0] < num_rows - greedy or logits.shape[1] != self.vocab_size:
            raise ValueError(f"logits has shape {logits.shape[0], logits.shape[1]}, "
                             f"expected {num_rows - greedy, self.vocab_size}")
        for i in range(num_rows):
            if not 0 <= rows[i] < self.s.rows:
                raise ValueError(f"row {rows[i]} is not one of the last step's {self.s.rows}")
            if targets is not None and not 0 <= targets[i] < self.vocab_size:
                raise ValueError(f"target id {targets[i]} is outside the vocabulary of {self.vocab_size}")
        best = np.empty((self.team.num_threads * greedy + 1) * sizeof(nv_best), np.uint8)
        cdef unsigned char[::1] best_view = best
        job.s, job.rows, job.num_rows, job.greedy_rows = &self.s, &rows[0], num_rows, greedy
        job.best = <nv_best *>&best_view[0]
        job.best_ids = &best_ids[0] if greedy else NULL
        job.logits = &logits[0, 0] if logits.shape[0] else NULL
        job.targets = NULL if targets is None else &targets[0]
        job.logprobs = NULL if targets is None else &logprobs[0]
        self.team.check_process()
        with nogil:
            team_run(self.m.team, head_member, &job)
