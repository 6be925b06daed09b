"""Times of single kernels, taken inside the thread team: what benchmarks need and Python's own cost would blur."""

import numpy as np

from cpython.mem cimport PyMem_Calloc, PyMem_Free

from nanovllm.kernels.isa cimport NV_SILU_MUL, NV_STORE, nv_gemm_scratch, nv_linear
from nanovllm.kernels.linear cimport Linear, linear_run, rows_t
from nanovllm.kernels.step cimport seconds
from nanovllm.kernels.team cimport Team, nv_team, team_barrier, team_run


cdef struct timing_job_t:
    nv_team *team
    const nv_linear **linears     # [num_linears] of one shape
    Py_ssize_t num_linears
    rows_t rows
    float *y
    Py_ssize_t ldy
    int mode
    char *scratch
    Py_ssize_t scratch_stride
    double *ends                  # [calls + 1] when each call had ended, behind when the first began
    Py_ssize_t calls


cdef void timing_member(void *arg, int tid, int num_threads) noexcept nogil:
    cdef timing_job_t *job = <timing_job_t *>arg
    cdef Py_ssize_t i
    team_barrier(job.team)
    if tid == 0:
        job.ends[0] = seconds()
    for i in range(job.calls):
        linear_run(job.linears[i % job.num_linears], &job.rows, job.y, job.ldy, job.mode,
                   job.scratch + tid * job.scratch_stride, tid, num_threads)
        team_barrier(job.team)
        if tid == 0:
            job.ends[i + 1] = seconds()


def linear_seconds(Team team, list linears, const float[:, ::1] x, Py_ssize_t calls):
    """Seconds [calls] of products of x with Linears of one shape and kind, taken in turns, the barrier included.

    Turns over more copies than fit into the caches show the speed at which weights come from memory, as in a model.

    Args:
        linears: at least one; x: [rows, in_features], converted once, outside the time.
        calls: how many products.

    Raises:
        ValueError: shapes or kinds differ.
    """
    cdef Linear first = linears[0], linear
    cdef Py_ssize_t rows = x.shape[0], i
    cdef timing_job_t job
    for other in linears:
        if other.shape != first.shape or other.kind != first.kind or x.shape[1] != first.c.k or not rows or calls < 1:
            raise ValueError(f"{calls} calls of {other.kind} {other.shape} and {first.kind} {first.shape} with rows "
                             f"{rows, x.shape[1]}")
    converted, scales = first._convert(x)
    y, ends = np.empty((rows, first.c.n), np.float32), np.empty(calls + 1)
    job.scratch_stride = (<Py_ssize_t>nv_gemm_scratch(first.c.k_padded) + 63) // 64 * 64
    scratch = np.empty(team.num_threads * job.scratch_stride, np.uint8)
    cdef const unsigned char[::1] x_view = converted
    cdef const float[::1] scales_view = scales
    cdef float[:, ::1] y_view = y
    cdef double[::1] ends_view = ends
    cdef unsigned char[::1] scratch_view = scratch
    job.team, job.num_linears, job.calls = team.ptr, len(linears), calls
    job.rows.x, job.rows.ldx, job.rows.scale, job.rows.count = &x_view[0], first.c.k_padded, &scales_view[0], rows
    job.y, job.ldy, job.mode = &y_view[0, 0], first.c.n, NV_SILU_MUL if first.c.gated else NV_STORE
    job.scratch, job.ends = <char *>&scratch_view[0], &ends_view[0]
    job.linears = <const nv_linear **>PyMem_Calloc(len(linears), sizeof(void *))
    if job.linears == NULL:
        raise MemoryError("no memory for the table of Linears")
    try:
        for i in range(len(linears)):
            linear = linears[i]
            job.linears[i] = &linear.c
        team.check_process()
        with nogil:
            team_run(team.ptr, timing_member, &job)
    finally:
        PyMem_Free(job.linears)
    return np.diff(ends)
