"""The active table of C kernels (csrc/kernels.h), for other Cython modules."""

from libc.stdint cimport int8_t, int32_t, uint8_t, uint16_t, uint64_t


cdef extern from "csrc/linear.h" nogil:
    enum:
        NV_PANEL
        NV_BLAS_F32
        NV_F32
        NV_BF16
        NV_INT8
        NV_STORE
        NV_ADD
        NV_SILU_MUL
        NV_SILU_MUL_BF16
        NV_HEAD

    ctypedef struct nv_best:
        float value
        int32_t id

    enum:
        NV_TOP_MOST
        NV_TOP_ROOM

    ctypedef struct nv_top:
        float bound
        int32_t k
        int32_t count
        int32_t *ids
        float *logits

    ctypedef struct nv_linear:
        int kind
        Py_ssize_t n
        Py_ssize_t k
        Py_ssize_t k_padded
        Py_ssize_t panels
        const void *weight
        const float *bias
        const float *scale
        const int32_t *offset
        int gated

    ctypedef struct nv_gemm:
        const nv_linear *w
        const void *x
        Py_ssize_t ldx
        const float *x_scale
        Py_ssize_t rows
        void *y
        Py_ssize_t ldy
        int mode
        Py_ssize_t greedy_rows
        Py_ssize_t top_rows
        nv_best *best
        nv_top *top
        void *scratch

    size_t nv_gemm_scratch(Py_ssize_t k_padded)
    Py_ssize_t nv_round_up(Py_ssize_t x, Py_ssize_t to)
    Py_ssize_t nv_k_padded(int kind, Py_ssize_t k)


cdef extern from "csrc/kernels.h" nogil:
    enum:
        NV_BLOCK
        NV_PIECE
        NV_ATTN_ROWS
        NV_V_ALIGN
        NV_CACHE_F32
        NV_CACHE_BF16
        NV_CACHE_INT8

    ctypedef struct nv_attention:
        const float *q
        float *out
        const Py_ssize_t *q_offset
        const Py_ssize_t *out_offset
        const int32_t *position
        int num_rows
        int cache
        const void *k_cache
        const void *v_cache
        Py_ssize_t k_block_stride
        Py_ssize_t v_block_stride
        const int32_t *block_table
        int head_dim
        int v_stride
        int window
        float scale
        int done
        float **state
        float *scratch
        nv_attention *next
        int asked

    Py_ssize_t nv_v_stride(int head_dim)
    Py_ssize_t nv_k_block_bytes(int cache, int head_dim)
    Py_ssize_t nv_v_block_bytes(int cache, int head_dim)
    size_t nv_attention_scratch(int rows, int head_dim)
    size_t nv_attention_part(int rows, int head_dim)
    size_t nv_attention_state(int head_dim)

    ctypedef struct nv_kernels:
        const char *name
        void (*rms_norm)(const float *x, Py_ssize_t ldx, const float *weight, float *y, Py_ssize_t ldy,
                         Py_ssize_t rows, Py_ssize_t n, float eps) noexcept nogil
        void (*rope)(float *x, const float *cosines, const float *sines, Py_ssize_t dim) noexcept nogil
        void (*silu_mul)(const float *gate, const float *up, float *out, Py_ssize_t n) noexcept nogil
        int attention_rows
        void (*attention)(const nv_attention *task) noexcept nogil
        void (*attention_fold)(const nv_attention *task, int piece) noexcept nogil
        void (*attention_part)(const nv_attention *task, int piece, float *part) noexcept nogil
        void (*attention_merge)(const nv_attention *task, const float *parts) noexcept nogil
        void (*log_sum_exp)(const float *logits, Py_ssize_t n, float *max, double *log_sum) noexcept nogil
        float (*inverse_rms)(const float *x, Py_ssize_t n, float eps) noexcept nogil
        void (*to_bf16)(const float *x, uint16_t *y, Py_ssize_t n, Py_ssize_t n_padded) noexcept nogil
        float (*to_int8)(const float *x, int8_t *y, Py_ssize_t n, Py_ssize_t n_padded, float factor) noexcept nogil
        void (*store_int8)(const float *k, const float *v, int head_dim, char *k_block, char *v_block, int offset,
                           uint8_t *temp) noexcept nogil
        void (*hadamard)(float *x, Py_ssize_t n, int block) noexcept nogil
        uint64_t (*read_all)(const void *data, size_t bytes) noexcept nogil
        void (*gemm)(const nv_gemm *task, Py_ssize_t panel_begin, Py_ssize_t panel_end) noexcept nogil

    const nv_kernels *const *nv_available_levels()
    const nv_kernels *const *nv_testable_levels()


cdef const nv_kernels *kernels() noexcept nogil
