"""The forward pass: every layer of one step, walked by all threads together, with barriers between operators."""

from libc.stdint cimport uint16_t

from nanovllm.kernels.attend cimport attend
from nanovllm.kernels.isa cimport (
    NV_ADD, NV_BF16, NV_BLAS_F32, NV_INT8, NV_SILU_MUL, NV_SILU_MUL_BF16, NV_STORE,
)
from nanovllm.kernels.linear cimport linear_run, rows_t
from nanovllm.kernels.rows cimport embed_rows, norm_input, quantize_row, rotate_and_store
from nanovllm.kernels.step cimport (
    OWN_NORM_ROWS, PHASE_ACTIVATION, PHASE_ATTENTION, PHASE_DOWN, PHASE_EMBED, PHASE_GATE_UP, PHASE_O, PHASE_QKV,
    PHASE_ROPE, layer_t, meet, model_t, seconds, step_t,
)


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
        s.next_task = s.next_merge = s.next_shared = 0
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
