"""Drawing tokens, for the thread team."""

from nanovllm.kernels.isa cimport nv_top
from nanovllm.kernels.sampling_row cimport SampleScratch
from nanovllm.kernels.sampling_step cimport RowParams, SampleBatch


cdef class SamplingScratch:
    cdef SampleScratch buffers
    cdef readonly Py_ssize_t vocab_size


cdef void sample_rows(
    const SampleBatch* batch, Py_ssize_t row_begin, Py_ssize_t row_end, const SampleScratch* scratch,
) noexcept nogil


cdef int sample_top(
    const nv_top* tops, int num_threads, Py_ssize_t stride, const RowParams* params, const SampleScratch* scratch,
) noexcept nogil
