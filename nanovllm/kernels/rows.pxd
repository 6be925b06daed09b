"""The operators of a layer that go by rows."""

from libc.stdint cimport uint16_t

from nanovllm.kernels.linear cimport rows_t
from nanovllm.kernels.step cimport layer_t, model_t, step_t


cdef void embed_rows(step_t *s, Py_ssize_t begin, Py_ssize_t end) noexcept nogil
cdef void norm_rows(const model_t *m, const float *x, const float *weight, const rows_t *to, Py_ssize_t row,
                    float *temp) noexcept nogil
cdef rows_t norm_input(step_t *s, const float *weight, Py_ssize_t begin, Py_ssize_t end, int tid) noexcept nogil
cdef void rotate_and_store(step_t *s, const layer_t *layer, Py_ssize_t begin, Py_ssize_t end,
                           uint16_t *temp) noexcept nogil
cdef void quantize_row(const model_t *m, float *x, Py_ssize_t n, int block, const rows_t *to,
                       Py_ssize_t row) noexcept nogil
