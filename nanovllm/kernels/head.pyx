"""The end of a step: final norm and lm_head of chosen rows, as logits, the best or largest, or log probabilities."""

from libc.math cimport INFINITY

from nanovllm.kernels.isa cimport NV_BLAS_F32, NV_STORE, nv_best
from nanovllm.kernels.linear cimport head_run, linear_run, rows_t
from nanovllm.kernels.rows cimport norm_rows
from nanovllm.kernels.step cimport PHASE_HEAD, meet, model_t, seconds, step_t
from nanovllm.kernels.team cimport team_barrier


cdef void merge_best(head_job_t *job, Py_ssize_t begin, Py_ssize_t end, int n) noexcept nogil:
    """The best id of each row over all threads' columns, which ascend with the thread: ties keep the lowest id."""
    cdef Py_ssize_t row
    cdef int tid
    cdef nv_best best
    cdef nv_best other
    for row in range(begin, end):
        best = job.best[row]
        for tid in range(1, n):
            other = job.best[tid * job.greedy_rows + row]
            if best.id == -2 or other.id == -2:
                best.id = -2
            elif other.id >= 0 and (best.id < 0 or other.value > best.value):
                best = other
        job.best_ids[row] = best.id if best.id >= 0 else -1


cdef void head_member(void *arg, int tid, int n) noexcept nogil:
    cdef head_job_t *job = <head_job_t *>arg
    cdef step_t *s = job.s
    cdef const model_t *m = s.m
    cdef Py_ssize_t begin = job.num_rows * tid // n, end = job.num_rows * (tid + 1) // n, row
    cdef Py_ssize_t vocab = m.lm_head.n
    cdef char *scratch = s.thread_scratch + tid * s.scratch_stride
    cdef nv_best *best = job.best + tid * job.greedy_rows
    cdef rows_t rows = s.hidden_in
    cdef float top
    cdef double log_sum
    rows.count = job.num_rows
    if tid == 0 and s.phase_s != NULL:
        s.phase_began = seconds()
    for row in range(begin, end):
        norm_rows(m, s.x + job.rows[row] * m.hidden_size, m.final_norm, &rows, row, <float *>scratch)
    for row in range(job.greedy_rows):
        best[row].value, best[row].id = -INFINITY, -1
    team_barrier(m.team)
    if m.kind == NV_BLAS_F32:
        linear_run(m.lm_head, &rows, job.logits, vocab, NV_STORE, scratch + s.gemm_at, tid, n)
    else:
        head_run(m.lm_head, &rows, job.logits, vocab, job.greedy_rows, best, job.top_rows,
                 job.top + tid * job.top_rows, scratch + s.gemm_at, tid, n)
    if job.greedy_rows > 0 or job.targets != NULL or s.phase_s != NULL:
        meet(s, PHASE_HEAD, tid)
    merge_best(job, job.greedy_rows * tid // n, job.greedy_rows * (tid + 1) // n, n)
    if job.targets == NULL:
        return
    for row in range(begin, end):
        m.k.log_sum_exp(job.logits + row * vocab, vocab, &top, &log_sum)
        job.logprobs[row] = <float>(job.logits[row * vocab + job.targets[row]] - log_sum)
