"""Temperature and filters of a row."""

from nanovllm.kernels.sampling_row cimport SampleScratch
from nanovllm.kernels.sampling_step cimport RowParams


# What is left of a row after the filters: weights in scratch.weights, ids ascending.
cdef struct Kept:
    Py_ssize_t count
    bint every_id     # weight i belongs to id i and scratch.ids is not filled


cdef Kept filter_row(
    const float* logits, Py_ssize_t vocab_size, float row_max, const RowParams* params, const SampleScratch* scratch,
) noexcept nogil


cdef Kept filter_top(Py_ssize_t count, const RowParams* params, const SampleScratch* scratch) noexcept nogil
