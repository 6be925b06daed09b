"""Sampling by the whole thread team: each row is drawn by one thread, with that thread's scratch."""

import numpy as np

from cpython.mem cimport PyMem_Free, PyMem_Malloc

from nanovllm.kernels.isa cimport nv_top
from nanovllm.kernels.sampling cimport SampleScratch, SamplingScratch, sample_rows, sample_top
from nanovllm.kernels.sampling_step cimport RowParams, SampleBatch, SampleStep
from nanovllm.kernels.team cimport Team, nv_fetch_add, team_run
from nanovllm.kernels.top_rows cimport TopRows

cdef struct sample_job_t:
    const SampleBatch *batch
    const SampleScratch *scratch  # [num_threads]
    Py_ssize_t num_rows
    Py_ssize_t next_row


cdef void sample_member(void *arg, int tid, int num_threads) noexcept nogil:
    cdef sample_job_t *job = <sample_job_t *>arg
    cdef Py_ssize_t row = nv_fetch_add(&job.next_row)
    while row < job.num_rows:
        sample_rows(job.batch, row, row + 1, &job.scratch[tid])
        row = nv_fetch_add(&job.next_row)


cdef struct top_job_t:
    const nv_top *tops            # [tops_threads, num_rows]
    int tops_threads
    const RowParams *params       # [num_rows]
    int *token_ids                # [num_rows]
    const SampleScratch *scratch  # [num_threads]
    Py_ssize_t num_rows
    Py_ssize_t next_row


cdef void top_member(void *arg, int tid, int num_threads) noexcept nogil:
    cdef top_job_t *job = <top_job_t *>arg
    cdef Py_ssize_t row = nv_fetch_add(&job.next_row)
    while row < job.num_rows:
        job.token_ids[row] = sample_top(job.tops + row, job.tops_threads, job.num_rows, &job.params[row],
                                        &job.scratch[tid])
        row = nv_fetch_add(&job.next_row)


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

    def sample(self, logits, params, history_ids, cu_history, num_prompt_tokens, banned_ids, cu_banned, **rules):
        """Draw one token for each row; the arguments are those of `sampling.sample`.

        Returns:
            (token_ids, status), both [num_rows] int32; token_ids is -1 where status is not 0.

        Raises:
            ValueError: shapes or offsets do not fit together.
        """
        num_rows = logits.shape[0]
        ids, status = np.full(num_rows, -1, np.int32), np.zeros(num_rows, np.int32)
        cdef SampleStep step = SampleStep(
            logits, params, history_ids, cu_history, num_prompt_tokens, banned_ids, cu_banned, ids, status,
            self.vocab_size, **rules)
        cdef sample_job_t job
        job.batch, job.scratch, job.num_rows, job.next_row = &step.batch, self.scratch, num_rows, 0
        if num_rows == 0:
            return ids, status
        self.team.check_process()
        with nogil:
            team_run(self.team.ptr, sample_member, &job)
        return ids, status

    def sample_top(self, TopRows top not None, const RowParams[::1] params):
        """Draw one token for each row of which only the largest logits are known.

        Args:
            top: as the lm_head filled it for these rows, each with its top_k.
            params: [num_rows] of `ROW_PARAMS_DTYPE`; of its settings temperature, top_k, top_p and min_p count.

        Returns:
            [num_rows] int32, the ids that `sample` draws from all logits; -1 where these must be looked at: one is not
            a number, or very many are equal.

        Raises:
            ValueError: params has another length.
        """
        if params.shape[0] != top.num_rows:
            raise ValueError(f"params has {params.shape[0]} entries, there are {top.num_rows} rows")
        ids = np.full(top.num_rows, -1, np.int32)
        cdef int[::1] ids_view = ids
        cdef top_job_t job
        if top.num_rows == 0:
            return ids
        job.tops, job.tops_threads, job.params, job.token_ids = top.tops, top.num_threads, &params[0], &ids_view[0]
        job.scratch, job.num_rows, job.next_row = self.scratch, top.num_rows, 0
        self.team.check_process()
        with nogil:
            team_run(self.team.ptr, top_member, &job)
        return ids
