"""The active table of C kernels (csrc/kernels.h), for other Cython modules."""

from libc.stdint cimport int32_t


cdef extern from "csrc/kernels.h" nogil:
    enum:
        NV_BLOCK
        NV_PIECE
        NV_ATTN_ROWS
        NV_LANES

    ctypedef struct nv_attention:
        const float *q
        float *out
        const Py_ssize_t *q_offset
        const Py_ssize_t *out_offset
        const int32_t *position
        int num_rows
        const float *k_cache
        const float *v_cache
        Py_ssize_t k_block_stride
        Py_ssize_t v_block_stride
        const int32_t *block_table
        int head_dim
        int v_stride
        int window
        float scale
        float *scratch

    size_t nv_attention_scratch(int head_dim)

    ctypedef struct nv_kernels:
        const char *name
        void (*rms_norm)(const float *x, Py_ssize_t ldx, const float *weight, float *y, Py_ssize_t ldy,
                         Py_ssize_t rows, Py_ssize_t n, float eps) noexcept nogil
        void (*rope)(float *x, const float *cosines, const float *sines, Py_ssize_t dim) noexcept nogil
        void (*silu_mul)(const float *gate, const float *up, float *out, Py_ssize_t n) noexcept nogil
        void (*attention)(const nv_attention *task) noexcept nogil
        void (*log_sum_exp)(const float *logits, Py_ssize_t n, float *max, double *log_sum) noexcept nogil

    const nv_kernels *const *nv_available_levels()


cdef const nv_kernels *kernels() noexcept nogil
