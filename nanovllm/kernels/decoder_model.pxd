"""A model's weights and KV cache as the structs that a step's threads walk over."""

from nanovllm.kernels.linear cimport Linear
from nanovllm.kernels.step cimport model_t


cdef class Model:
    cdef model_t c
    cdef list keep                # the objects that `c` points into
    cdef readonly Py_ssize_t vocab_size
    cdef readonly Py_ssize_t num_blocks
    cdef readonly object k_cache
    cdef readonly object v_cache
    cdef const float *_vector(self, array, Py_ssize_t size, name) except NULL
    cdef int _check(self, Linear linear, Py_ssize_t n, Py_ssize_t k, name) except -1
