"""Attention of one layer over a step's rows."""

from nanovllm.kernels.step cimport layer_t, step_t


cdef void attend(step_t *s, const layer_t *layer, int tid) noexcept nogil
