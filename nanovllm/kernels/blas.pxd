"""SciPy's BLAS in row-major order, scalars by value."""


cdef void sgemm_nt(Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const float *a, Py_ssize_t lda, const float *b,
                   Py_ssize_t ldb, float beta, float *c, Py_ssize_t ldc) noexcept nogil
