"""Linear owns one weight in the layout its GEMM wants, and its bias. Three kinds of layout, one interface.

    float32   row-major [out_features, in_features], scipy.linalg.cython_blas.sgemm
"""

import numpy as np

from nanovllm.kernels.blas cimport sgemm_nt
from nanovllm.kernels.team cimport Team, team_run

# Columns are given to threads in multiples of this, so that no two threads write one cache line.
cdef enum:
    PANEL = 32


cdef void linear_run(const linear_t *linear, const float *x, Py_ssize_t ldx, Py_ssize_t rows, float *y, Py_ssize_t ldy,
                     bint accumulate, int tid, int num_threads) noexcept nogil:
    """y[rows, out] (+)= x[rows, in] @ weight.T + bias, thread `tid`'s share of the output columns."""
    cdef Py_ssize_t panels = (linear.out_features + PANEL - 1) // PANEL
    cdef Py_ssize_t begin = panels * tid // num_threads * PANEL
    cdef Py_ssize_t end = min(panels * (tid + 1) // num_threads * PANEL, linear.out_features)
    cdef Py_ssize_t row, column
    if begin >= end or rows == 0:
        return
    sgemm_nt(rows, end - begin, linear.in_features, x, ldx, linear.weight + begin * linear.in_features,
             linear.in_features, 1.0 if accumulate else 0.0, y + begin, ldy)
    if linear.bias != NULL:
        for row in range(rows):
            for column in range(begin, end):
                y[row * ldy + column] += linear.bias[column]


cdef struct linear_job_t:
    const linear_t *linear
    const float *x
    Py_ssize_t ldx
    Py_ssize_t rows
    float *y
    Py_ssize_t ldy
    bint accumulate


cdef void linear_member(void *arg, int tid, int num_threads) noexcept nogil:
    cdef linear_job_t *job = <linear_job_t *>arg
    linear_run(job.linear, job.x, job.ldx, job.rows, job.y, job.ldy, job.accumulate, tid, num_threads)


cdef class Linear:
    """One weight matrix [out_features, in_features] and an optional bias [out_features].

    Args:
        weight: float32, C-contiguous; referenced, not copied.
        bias: float32 or None.

    Raises:
        ValueError: a shape does not fit, or a dimension is beyond BLAS's 32-bit integers.
    """

    def __init__(self, const float[:, ::1] weight, const float[::1] bias=None):
        if weight.shape[0] == 0 or weight.shape[1] == 0:
            raise ValueError(f"a Linear needs a weight with elements, found shape {weight.shape[0], weight.shape[1]}")
        if weight.shape[0] >= 1 << 31 or weight.shape[1] >= 1 << 31:
            raise ValueError(f"weight of shape {weight.shape[0], weight.shape[1]} is beyond the 32-bit sizes of BLAS")
        if bias is not None and bias.shape[0] != weight.shape[0]:
            raise ValueError(f"bias has {bias.shape[0]} elements, the weight {weight.shape[0]} rows")
        self.kind = "float32"
        self.keep = (np.asarray(weight), None if bias is None else np.asarray(bias))
        self.nbytes = weight.nbytes + (0 if bias is None else bias.nbytes)
        self.c.kind = LINEAR_FLOAT32
        self.c.out_features = weight.shape[0]
        self.c.in_features = weight.shape[1]
        self.c.weight = &weight[0, 0]
        self.c.bias = NULL if bias is None else &bias[0]

    def __call__(self, Team team, const float[:, ::1] x, float[:, ::1] y, bint accumulate=False):
        """y [rows, out_features] = x [rows, in_features] @ weight.T + bias; with `accumulate`, added to y."""
        if (x.shape[1] != self.c.in_features or y.shape[1] != self.c.out_features or x.shape[0] != y.shape[0]):
            raise ValueError(f"shapes do not fit: x {x.shape[0], x.shape[1]}, y {y.shape[0], y.shape[1]}, "
                             f"weight {self.c.out_features, self.c.in_features}")
        if x.shape[0] == 0:
            return
        cdef linear_job_t job
        job.linear, job.x, job.ldx, job.rows = &self.c, &x[0, 0], x.shape[1], x.shape[0]
        job.y, job.ldy, job.accumulate = &y[0, 0], y.shape[1], accumulate
        team.check_process()
        with nogil:
            team_run(team.ptr, linear_member, &job)
