"""The logits of a row as its settings want them."""

from nanovllm.kernels.sampling_row cimport RowIds, SampleScratch
from nanovllm.kernels.sampling_step cimport RowParams


cdef int process_logits(
    float* logits, Py_ssize_t vocab_size, const RowParams* params, const RowIds* ids, const SampleScratch* scratch,
    float* row_max,
) noexcept nogil
