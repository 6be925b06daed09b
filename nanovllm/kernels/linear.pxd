"""Linear: the one seam for the speed of matrix products."""


cdef enum:
    LINEAR_FLOAT32 = 0


# A weight in the layout that its GEMM reads, and its bias; plain C so that the decoder's thread code can use it.
cdef struct linear_t:
    int kind
    Py_ssize_t out_features
    Py_ssize_t in_features
    const float *weight  # LINEAR_FLOAT32: [out_features, in_features]
    const float *bias    # [out_features] or NULL


cdef void linear_run(const linear_t *linear, const float *x, Py_ssize_t ldx, Py_ssize_t rows, float *y, Py_ssize_t ldy,
                     bint accumulate, int tid, int num_threads) noexcept nogil


cdef class Linear:
    cdef linear_t c
    cdef object keep  # the arrays that `c` points into
    cdef readonly str kind
    cdef readonly Py_ssize_t nbytes
