"""Drawing tokens, for the thread team."""

from nanovllm.kernels.sampling_row cimport SampleScratch
from nanovllm.kernels.sampling_step cimport SampleBatch


cdef class SamplingScratch:
    cdef SampleScratch buffers
    cdef readonly Py_ssize_t vocab_size


cdef void sample_rows(
    const SampleBatch* batch, Py_ssize_t row_begin, Py_ssize_t row_end, const SampleScratch* scratch,
) noexcept nogil
