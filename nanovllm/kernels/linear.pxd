"""Linear: the one seam for the speed of matrix products."""

from nanovllm.kernels.isa cimport nv_best, nv_linear, nv_top


# Rows of activations in the form that a Linear's kind reads.
cdef struct rows_t:
    const void *x        # float, bfloat16 or int8
    Py_ssize_t ldx       # elements from one row to the next; at least k_padded of a packed kind
    const float *scale   # one for each row of int8, else NULL
    Py_ssize_t count


cdef void linear_run(const nv_linear *linear, const rows_t *rows, void *y, Py_ssize_t ldy, int mode, void *scratch,
                     int tid, int num_threads) noexcept nogil


cdef void head_run(const nv_linear *linear, const rows_t *rows, float *y, Py_ssize_t ldy, Py_ssize_t greedy_rows,
                   nv_best *best, Py_ssize_t top_rows, nv_top *top, void *scratch, int tid,
                   int num_threads) noexcept nogil


cdef class Linear:
    cdef nv_linear c
    cdef object keep  # the arrays that `c` points into
    cdef readonly str kind
    cdef readonly Py_ssize_t nbytes
    cdef _set_sizes(self, int kind, Py_ssize_t n, Py_ssize_t k, bint gated)
    cdef _set_bias(self, const float[::1] bias)
