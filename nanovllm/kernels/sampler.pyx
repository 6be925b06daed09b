"""Sampling by the whole thread team: each row is drawn by one thread, with that thread's scratch."""

import numpy as np

from cpython.mem cimport PyMem_Free, PyMem_Malloc

from nanovllm.kernels.sampling cimport RowParams, SampleBatch, SampleScratch, SamplingScratch, sample_rows
from nanovllm.kernels.team cimport Team, team_run

from nanovllm.kernels.sampling import check_batch

cdef extern from *:
    """
    static inline Py_ssize_t nv_next_row(Py_ssize_t *p) { return __atomic_fetch_add(p, 1, __ATOMIC_RELAXED); }
    """
    Py_ssize_t nv_next_row(Py_ssize_t *p) noexcept nogil


cdef struct sample_job_t:
    const SampleBatch *batch
    const SampleScratch *scratch  # [num_threads]
    Py_ssize_t num_rows
    Py_ssize_t next_row


cdef void sample_member(void *arg, int tid, int num_threads) noexcept nogil:
    cdef sample_job_t *job = <sample_job_t *>arg
    cdef Py_ssize_t row = nv_next_row(&job.next_row)
    while row < job.num_rows:
        sample_rows(job.batch, row, row + 1, &job.scratch[tid])
        row = nv_next_row(&job.next_row)


cdef class Sampler:
    """Scratch for every thread of `team`, for vocabularies up to vocab_size."""

    cdef Team team
    cdef list keep
    cdef SampleScratch *scratch
    cdef readonly Py_ssize_t vocab_size

    def __cinit__(self, Team team, Py_ssize_t vocab_size):
        cdef SamplingScratch one
        cdef int i
        self.team, self.vocab_size, self.keep = team, vocab_size, []
        self.scratch = <SampleScratch *>PyMem_Malloc(team.num_threads * sizeof(SampleScratch))
        if self.scratch == NULL:
            raise MemoryError("no memory for the table of sampling scratch")
        for i in range(team.num_threads):
            one = SamplingScratch(vocab_size)
            self.keep.append(one)
            self.scratch[i] = one.buffers

    def __dealloc__(self):
        PyMem_Free(self.scratch)

    def sample(self, float[:, ::1] logits, const RowParams[::1] params, const int[::1] history_ids,
               const int[::1] cu_history, const int[::1] num_prompt_tokens, const int[::1] banned_ids,
               const int[::1] cu_banned):
        """Draw one token for each row; the arguments are those of `sampling.sample`.

        Returns:
            (token_ids, status), both [num_rows] int32; token_ids is -1 where status is not 0.

        Raises:
            ValueError: shapes or offsets do not fit together.
        """
        cdef Py_ssize_t num_rows = logits.shape[0]
        ids, status = np.full(num_rows, -1, np.int32), np.zeros(num_rows, np.int32)
        if num_rows == 0:
            return ids, status
        check_batch(logits, params, history_ids, cu_history, num_prompt_tokens, banned_ids, cu_banned, self.vocab_size)
        cdef int[::1] ids_view = ids, status_view = status
        cdef SampleBatch batch
        cdef sample_job_t job
        batch.logits, batch.vocab_size, batch.params = &logits[0, 0], logits.shape[1], &params[0]
        batch.history_ids = &history_ids[0] if history_ids.shape[0] else NULL
        batch.banned_ids = &banned_ids[0] if banned_ids.shape[0] else NULL
        batch.cu_history, batch.num_prompt_tokens = &cu_history[0], &num_prompt_tokens[0]
        batch.cu_banned, batch.token_ids, batch.status = &cu_banned[0], &ids_view[0], &status_view[0]
        job.batch, job.scratch, job.num_rows, job.next_row = &batch, self.scratch, num_rows, 0
        self.team.check_process()
        with nogil:
            team_run(self.team.ptr, sample_member, &job)
        return ids, status
