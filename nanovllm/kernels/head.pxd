"""The job of one run of the lm_head, for the decoder's entries."""

from libc.stdint cimport int32_t

from nanovllm.kernels.isa cimport nv_best, nv_top
from nanovllm.kernels.step cimport step_t


cdef struct head_job_t:
    step_t *s
    const int32_t *rows           # [num_rows] rows of the last step
    Py_ssize_t num_rows
    Py_ssize_t greedy_rows        # so many first rows only want their best id
    Py_ssize_t top_rows           # so many after them only want their largest logits
    nv_best *best                 # [num_threads, greedy_rows]
    int32_t *best_ids             # [greedy_rows]
    nv_top *top                   # [num_threads, top_rows]
    float *logits                 # [num_rows - greedy_rows - top_rows, vocab_size]
    const int32_t *targets        # [num_rows] or NULL
    float *logprobs               # [num_rows]


cdef void head_member(void *arg, int tid, int n) noexcept nogil
