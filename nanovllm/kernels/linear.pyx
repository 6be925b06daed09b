"""Linear owns one weight in the layout its GEMM wants, and its bias. One interface over four kinds of layout.

    blas      float32 row-major [out_features, in_features], scipy.linalg.cython_blas.sgemm
    float32   float32 in panels, our own kernels: batch-invariant, and faster than BLAS for few rows
    bfloat16  bfloat16 in panels; activations rounded to bfloat16, sums in float32
    int8      int8 in panels, one scale a column; activations int8 with one scale a row, sums exact in int32

The packed layouts are described in csrc/linear.h.
"""

import numpy as np

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int8_t, int32_t, uint16_t

from nanovllm.kernels.blas cimport sgemm_nt
from nanovllm.kernels.isa cimport (
    NV_ADD, NV_BF16, NV_BLAS_F32, NV_F32, NV_HEAD, NV_INT8, NV_PANEL, NV_SILU_MUL, NV_STORE, kernels, nv_best, nv_gemm,
    nv_gemm_scratch, nv_k_padded, nv_linear, nv_top,
)
from nanovllm.kernels.team cimport Team, team_run

from nanovllm.kernels import memory

cdef extern from "csrc/pack.h" nogil:
    ctypedef struct nv_source:
        const void *data
        Py_ssize_t rows
        int dtype
    void nv_pack_panels(const nv_linear *w, const nv_source *sources, int num_sources, Py_ssize_t panel_begin,
                        Py_ssize_t panel_end, void *weight, float *scale, int32_t *offset, void *temp)
    size_t nv_pack_scratch(Py_ssize_t k_padded)

cdef dict KINDS = {"blas": NV_BLAS_F32, "float32": NV_F32, "bfloat16": NV_BF16, "int8": NV_INT8}
# NumPy has no bfloat16: its bits travel as uint16. The values are those of csrc/pack.h.
cdef dict SOURCES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.uint16): 2}
cdef dict ITEMSIZE = {"float32": 4, "bfloat16": 2, "int8": 1}

PANEL = NV_PANEL


cdef void blas_run(const nv_linear *linear, const rows_t *rows, float *y, Py_ssize_t ldy, bint accumulate, int tid,
                   int num_threads) noexcept nogil:
    cdef Py_ssize_t panels = (linear.n + NV_PANEL - 1) // NV_PANEL
    cdef Py_ssize_t begin = panels * tid // num_threads * NV_PANEL
    cdef Py_ssize_t end = min(panels * (tid + 1) // num_threads * NV_PANEL, linear.n)
    cdef Py_ssize_t row, column
    if begin >= end:
        return
    sgemm_nt(rows.count, end - begin, linear.k, <const float *>rows.x, rows.ldx,
             <const float *>linear.weight + begin * linear.k, linear.k, 1.0 if accumulate else 0.0, y + begin, ldy)
    if linear.bias != NULL:
        for row in range(rows.count):
            for column in range(begin, end):
                y[row * ldy + column] += linear.bias[column]


cdef void linear_run(const nv_linear *linear, const rows_t *rows, void *y, Py_ssize_t ldy, int mode, void *scratch,
                     int tid, int num_threads) noexcept nogil:
    """y (+)= rows @ weight.T + bias, thread `tid`'s share of the output columns."""
    cdef nv_gemm g
    if rows.count == 0:
        return
    if linear.kind == NV_BLAS_F32:
        blas_run(linear, rows, <float *>y, ldy, mode == NV_ADD, tid, num_threads)
        return
    g.w, g.x, g.ldx, g.x_scale, g.rows = linear, rows.x, rows.ldx, rows.scale, rows.count
    g.y, g.ldy, g.mode, g.scratch = y, ldy, mode, scratch
    g.greedy_rows, g.top_rows, g.best, g.top = 0, 0, NULL, NULL
    kernels().gemm(&g, linear.panels * tid // num_threads, linear.panels * (tid + 1) // num_threads)


cdef void head_run(const nv_linear *linear, const rows_t *rows, float *y, Py_ssize_t ldy, Py_ssize_t greedy_rows,
                   nv_best *best, Py_ssize_t top_rows, nv_top *top, void *scratch, int tid,
                   int num_threads) noexcept nogil:
    """Logits of a packed lm_head: thread `tid`'s columns of the first greedy_rows go into best, those of the next
    top_rows into top, the others to y."""
    cdef nv_gemm g
    g.w, g.x, g.ldx, g.x_scale, g.rows = linear, rows.x, rows.ldx, rows.scale, rows.count
    g.y, g.ldy, g.mode, g.scratch = y, ldy, NV_HEAD, scratch
    g.greedy_rows, g.top_rows, g.best, g.top = greedy_rows, top_rows, best, top
    kernels().gemm(&g, linear.panels * tid // num_threads, linear.panels * (tid + 1) // num_threads)


cdef struct pack_job_t:
    const nv_linear *linear
    const nv_source *sources
    int num_sources
    void *weight
    float *scale
    int32_t *offset
    char *temp
    Py_ssize_t temp_stride


cdef void pack_member(void *arg, int tid, int num_threads) noexcept nogil:
    cdef pack_job_t *job = <pack_job_t *>arg
    cdef Py_ssize_t panels = job.linear.panels
    nv_pack_panels(job.linear, job.sources, job.num_sources, panels * tid // num_threads,
                   panels * (tid + 1) // num_threads, job.weight, job.scale, job.offset,
                   job.temp + tid * job.temp_stride)


cdef struct linear_job_t:
    const nv_linear *linear
    rows_t rows
    float *y
    Py_ssize_t ldy
    int mode
    char *scratch
    Py_ssize_t scratch_stride


cdef void linear_member(void *arg, int tid, int num_threads) noexcept nogil:
    cdef linear_job_t *job = <linear_job_t *>arg
    linear_run(job.linear, &job.rows, job.y, job.ldy, job.mode, job.scratch + tid * job.scratch_stride, tid,
               num_threads)


cdef class Linear:
    """One weight matrix [out_features, in_features] and an optional bias [out_features], kind "blas".

    Args:
        weight: float32, C-contiguous; referenced, not copied.
        bias: float32 or None.

    Raises:
        ValueError: a shape does not fit, or a dimension is beyond BLAS's 32-bit integers.
    """

    def __init__(self, const float[:, ::1] weight, const float[::1] bias=None):
        self._set_sizes(NV_BLAS_F32, weight.shape[0], weight.shape[1], False)
        self.kind = "blas"
        self.keep = [np.asarray(weight)]
        self.nbytes = weight.nbytes
        self.c.weight = &weight[0, 0]
        if bias is not None:
            self._set_bias(bias)

    cdef _set_sizes(self, int kind, Py_ssize_t n, Py_ssize_t k, bint gated):
        if n <= 0 or k <= 0:
            raise ValueError(f"a Linear needs a weight with elements, found shape {n, k}")
        if n >= 1 << 31 or k >= 1 << 31:
            raise ValueError(f"weight of shape {n, k} is beyond 32-bit sizes")
        cdef Py_ssize_t width = NV_PANEL // 2 if gated else NV_PANEL
        self.c.kind, self.c.n, self.c.k, self.c.gated = kind, n, k, gated
        self.c.k_padded = nv_k_padded(kind, k)
        self.c.panels = (n + width - 1) // width

    cdef _set_bias(self, const float[::1] bias):
        """Take the bias in the order of the packed columns."""
        cdef Py_ssize_t n = self.c.n, expected = 2 * n if self.c.gated else n, half = NV_PANEL // 2
        if bias.shape[0] != expected:
            raise ValueError(f"bias has {bias.shape[0]} elements, the weight {expected} rows")
        given = np.asarray(bias)
        if self.c.gated:
            packed = np.zeros((self.c.panels, 2, half), np.float32)
            for part in range(2):
                padded = np.zeros(self.c.panels * half, np.float32)
                padded[:n] = given[part * n:(part + 1) * n]
                packed[:, part] = padded.reshape(-1, half)
        else:
            packed = np.zeros(self.c.panels * NV_PANEL, np.float32)
            packed[:n] = given
        cdef const float[::1] view = packed.reshape(-1)
        self.c.bias = &view[0]
        self.keep.append(packed)
        self.nbytes += packed.nbytes

    @property
    def shape(self):
        """(out_features, in_features); of a gated pair those of one half."""
        return self.c.n, self.c.k

    @staticmethod
    def pack(Team team, kind, sources, const float[::1] bias=None, bint gated=False):
        """Pack a weight, given as arrays [rows, in_features] stacked one below the other.

        Args:
            kind: "float32", "bfloat16" or "int8".
            sources: C-contiguous float32, float16 or uint16 (bfloat16 bits), any alignment; only read, not kept.
            bias: [rows in all] float32 or None.
            gated: the first half of the rows are gate's, the second half up's; calls then give silu(gate) * up.

        Raises:
            ValueError: kinds, shapes or dtypes do not fit.
        """
        if kind not in KINDS or kind == "blas":
            raise ValueError(f"kind is {kind!r}, expected float32, bfloat16 or int8")
        rows = sum(source.shape[0] for source in sources)
        if gated and rows % 2:
            raise ValueError(f"a gated pair has as many rows of gate as of up, found {rows} in all")
        cdef Linear self = Linear.__new__(Linear)
        cdef Py_ssize_t in_features = sources[0].shape[1]
        self._set_sizes(KINDS[kind], rows // 2 if gated else rows, in_features, gated)
        self._allocate(kind)
        self._fill(team, sources, 0, self.c.n)
        if bias is not None:
            self._set_bias(bias)
        return self

    @staticmethod
    def pack_parts(Team team, kind, shape, parts):
        """Pack a weight [out_features, in_features] = shape that comes in parts, so that it need never be whole.

        Args:
            kind: "float32", "bfloat16" or "int8".
            parts: iterable of arrays like the sources of `pack`, one below the other; the rows of each but the last are
                a multiple of PANEL.

        Raises:
            ValueError: kinds, shapes or dtypes do not fit.
        """
        if kind not in KINDS or kind == "blas":
            raise ValueError(f"kind is {kind!r}, expected float32, bfloat16 or int8")
        cdef Linear self = Linear.__new__(Linear)
        cdef Py_ssize_t row = 0
        self._set_sizes(KINDS[kind], shape[0], shape[1], False)
        self._allocate(kind)
        for part in parts:
            if row % NV_PANEL or row + part.shape[0] > self.c.n:
                raise ValueError(f"a part of {part.shape[0]} rows does not fit after {row} of {self.c.n} rows")
            self._fill(team, [part], row // NV_PANEL, part.shape[0])
            row += part.shape[0]
        if row != self.c.n:
            raise ValueError(f"the parts have {row} rows in all, the weight {self.c.n}")
        return self

    def _allocate(self, kind):
        """Memory for the packed weight and, for int8, its scales and offsets."""
        cdef Py_ssize_t columns = self.c.panels * NV_PANEL, scales = columns if kind == "int8" else 1
        weight = memory.zeros(columns * self.c.k_padded * ITEMSIZE[kind])
        scale, offset = np.empty(scales, np.float32), np.empty(scales, np.int32)
        cdef unsigned char[::1] weight_view = weight
        cdef float[::1] scale_view = scale
        cdef int32_t[::1] offset_view = offset
        self.kind, self.keep = kind, [weight, scale, offset]
        self.c.weight, self.c.scale, self.c.offset = &weight_view[0], &scale_view[0], &offset_view[0]
        self.nbytes = weight.nbytes + (scale.nbytes + offset.nbytes if kind == "int8" else 0)

    def _fill(self, Team team, sources, Py_ssize_t panel, Py_ssize_t n):
        """Pack n output columns from `panel` on, whose rows the sources hold."""
        cdef nv_linear part = self.c
        cdef pack_job_t job
        cdef Py_ssize_t width = NV_PANEL // 2 if self.c.gated else NV_PANEL
        cdef Py_ssize_t panel_bytes = NV_PANEL * self.c.k_padded * ITEMSIZE[self.kind]
        cdef Py_ssize_t column = panel * NV_PANEL if self.c.kind == NV_INT8 else 0
        cdef nv_source *table = <nv_source *>PyMem_Calloc(len(sources), sizeof(nv_source))
        if table == NULL:
            raise MemoryError("no memory for the table of sources")
        job.temp_stride = nv_pack_scratch(self.c.k_padded)
        temp = np.empty(team.num_threads * job.temp_stride, np.uint8)
        cdef unsigned char[::1] temp_view = temp
        try:
            for i, source in enumerate(sources):
                if source.ndim != 2 or source.shape[1] != self.c.k or source.dtype not in SOURCES:
                    raise ValueError(f"source {i} has shape {source.shape} and dtype {source.dtype}, expected "
                                     f"[rows, {self.c.k}] of float32, float16 or bfloat16 bits")
                if not source.flags.c_contiguous:
                    raise ValueError(f"source {i} is not C-contiguous")
                table[i].data = <const void *><size_t>source.ctypes.data
                table[i].rows, table[i].dtype = source.shape[0], SOURCES[source.dtype]
            part.n, part.panels = n, (n + width - 1) // width
            job.linear, job.sources, job.num_sources = &part, table, <int>len(sources)
            job.weight, job.temp = <char *>self.c.weight + panel * panel_bytes, <char *>&temp_view[0]
            job.scale, job.offset = <float *>self.c.scale + column, <int32_t *>self.c.offset + column
            team.check_process()
            with nogil:
                team_run(team.ptr, pack_member, &job)
        finally:
            PyMem_Free(table)

    def __call__(self, Team team, const float[:, ::1] x, float[:, ::1] y, bint accumulate=False):
        """y [rows, out_features] = x [rows, in_features] @ weight.T + bias; with `accumulate`, added to y.

        A gated pair gives silu(x @ gate.T) * (x @ up.T). x is first brought to the form that the kind reads.
        """
        if x.shape[1] != self.c.k or y.shape[1] != self.c.n or x.shape[0] != y.shape[0]:
            raise ValueError(f"shapes do not fit: x {x.shape[0], x.shape[1]}, y {y.shape[0], y.shape[1]}, "
                             f"weight {self.c.n, self.c.k}")
        if accumulate and self.c.gated:
            raise ValueError("a gated pair cannot be added to y")
        if x.shape[0] == 0:
            return
        cdef linear_job_t job
        job.linear, job.rows.count = &self.c, x.shape[0]
        converted, scales = self._convert(x)
        cdef const unsigned char[::1] bytes_view = converted
        cdef const float[::1] scales_view = scales
        job.rows.x, job.rows.ldx, job.rows.scale = &bytes_view[0], self.c.k_padded, &scales_view[0]
        job.y, job.ldy = &y[0, 0], y.shape[1]
        job.mode = NV_SILU_MUL if self.c.gated else NV_ADD if accumulate else NV_STORE
        job.scratch_stride = nv_gemm_scratch(self.c.k_padded)
        scratch = np.empty(team.num_threads * job.scratch_stride, np.uint8)
        cdef unsigned char[::1] scratch_view = scratch
        job.scratch = <char *>&scratch_view[0]
        team.check_process()
        with nogil:
            team_run(team.ptr, linear_member, &job)

    def _convert(self, const float[:, ::1] x):
        """(bytes of x in the form that the kind reads, one scale for each row)."""
        cdef Py_ssize_t rows = x.shape[0], padded = self.c.k_padded, row
        scales = np.ones(rows, np.float32)
        if self.c.kind in (NV_F32, NV_BLAS_F32):
            return np.ascontiguousarray(x).view(np.uint8).reshape(-1), scales
        out = np.zeros(rows * padded * (2 if self.c.kind == NV_BF16 else 1), np.uint8)
        cdef unsigned char[::1] view = out
        cdef float[::1] scales_view = scales
        for row in range(rows):
            if self.c.kind == NV_BF16:
                kernels().to_bf16(&x[row, 0], <uint16_t *>&view[row * padded * 2], self.c.k, padded)
            else:
                scales_view[row] = kernels().to_int8(&x[row, 0], <int8_t *>&view[row * padded], self.c.k, padded, 1.0)
        return out, scales
