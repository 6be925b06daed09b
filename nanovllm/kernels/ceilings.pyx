"""What this machine can do at most, measured on the spot: the floors that benchmarks compare with."""

import time

import numpy as np

from nanovllm.kernels.isa cimport NV_PANEL, kernels
from nanovllm.kernels.linear cimport Linear, linear_run, rows_t
from nanovllm.kernels.isa cimport NV_STORE, nv_gemm_scratch, nv_linear
from nanovllm.kernels.team cimport Team, team_run

# Rows of the peak measurement: what one strip of every level takes at full speed (32 on AMX, 12 and 6 elsewhere).
PEAK_ROWS = 96
# Panels of the peak measurement: enough that a strip's own cost is spread, few enough to stay in the L2 cache.
PEAK_PANELS = 8


cdef struct read_job_t:
    const char *data
    Py_ssize_t bytes_each
    int repeats
    unsigned long long sums[1024]


cdef void read_member(void *arg, int tid, int num_threads) noexcept nogil:
    cdef read_job_t *job = <read_job_t *>arg
    cdef int _i
    for _i in range(job.repeats):
        job.sums[tid] += kernels().read_all(job.data + tid * job.bytes_each, job.bytes_each)


def read_bandwidth(Team team, Py_ssize_t bytes_each, int repeats=3, int tries=4):
    """Bytes a second that all threads together read, each from its own `bytes_each` bytes; the best of `tries`."""
    data = np.ones(team.num_threads * bytes_each, np.uint8)
    cdef const unsigned char[::1] view = data
    cdef read_job_t job
    job.data, job.bytes_each, job.repeats = <const char *>&view[0], bytes_each, repeats
    best = 0.0
    for _ in range(tries):
        start = time.perf_counter()
        with nogil:
            team_run(team.ptr, read_member, &job)
        best = max(best, team.num_threads * bytes_each * repeats / (time.perf_counter() - start))
    return best


cdef struct peak_job_t:
    const nv_linear *linear
    rows_t rows
    float *y              # [num_threads, rows, columns]
    char *scratch
    Py_ssize_t scratch_stride
    int repeats


cdef void peak_member(void *arg, int tid, int num_threads) noexcept nogil:
    cdef peak_job_t *job = <peak_job_t *>arg
    cdef int _i
    for _i in range(job.repeats):
        # Every thread multiplies all panels, so nothing is shared and nothing leaves the near caches.
        linear_run(job.linear, &job.rows, job.y + tid * job.rows.count * job.linear.n, job.linear.n, NV_STORE,
                   job.scratch + tid * job.scratch_stride, 0, 1)


def peak(Team team, kind, double seconds=0.2):
    """Operations a second (a multiplication and an addition are two) of a packed kind on all threads, data in cache."""
    cdef Py_ssize_t k = 512, rows = PEAK_ROWS, columns
    rng = np.random.default_rng(0)
    columns = PEAK_PANELS * NV_PANEL
    weight = rng.standard_normal((columns, k), np.float32)
    cdef Linear linear = Linear.pack(team, kind, [weight])
    converted, scales = linear._convert(rng.standard_normal((rows, k), np.float32))
    cdef const unsigned char[::1] x_view = converted
    cdef const float[::1] scales_view = scales
    y = np.empty(team.num_threads * rows * columns, np.float32)
    cdef float[::1] y_view = y
    cdef peak_job_t job
    job.linear, job.y, job.repeats = &linear.c, &y_view[0], 10
    job.rows.x, job.rows.ldx, job.rows.scale, job.rows.count = &x_view[0], linear.c.k_padded, &scales_view[0], rows
    job.scratch_stride = (<Py_ssize_t>nv_gemm_scratch(k) + 63) // 64 * 64
    scratch = np.empty(team.num_threads * job.scratch_stride, np.uint8)
    cdef unsigned char[::1] scratch_view = scratch
    job.scratch = <char *>&scratch_view[0]
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        with nogil:
            team_run(team.ptr, peak_member, &job)
        taken = time.perf_counter() - start
        best = max(best, 2.0 * rows * columns * k * job.repeats * team.num_threads / taken)
    return best
