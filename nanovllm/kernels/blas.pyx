"""The only module that calls SciPy's BLAS.

It hides the row-major swap, the missing `const` of SciPy's signatures and the pointers to scalars, and it holds BLAS to
one thread while our own team is at work: two pools that wait for each other halve the speed.
"""

import ctypes
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from scipy.linalg.cython_blas cimport sgemm


cdef void sgemm_nt(Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const float *a, Py_ssize_t lda, const float *b,
                   Py_ssize_t ldb, float beta, float *c, Py_ssize_t ldc) noexcept nogil:
    """c[m, n] := a[m, k] @ b[n, k].T + beta * c, row-major; the caller keeps every dimension under 2**31."""
    # Column-major BLAS sees a row-major matrix as its transpose: c.T = b @ a.T.
    cdef int m_ = <int>m, n_ = <int>n, k_ = <int>k, lda_ = <int>lda, ldb_ = <int>ldb, ldc_ = <int>ldc
    cdef float one = 1
    cdef char transposed = b"T", plain = b"N"
    sgemm(&transposed, &plain, &n_, &m_, &k_, &one, <float *>b, &ldb_, <float *>a, &lda_, &beta, c, &ldc_)


def sgemm_nt_memview(const float[:, ::1] a, const float[:, ::1] b, float[:, ::1] c, float beta=0.0):
    """c := a @ b.T + beta * c; a [m, k], b [n, k], c [m, n] float32 (test twin of `sgemm_nt`)."""
    if a.shape[1] != b.shape[1] or c.shape[0] != a.shape[0] or c.shape[1] != b.shape[0]:
        raise ValueError(f"shapes do not fit: a {a.shape[0], a.shape[1]}, b {b.shape[0], b.shape[1]}, "
                         f"c {c.shape[0], c.shape[1]}; expected [m, k], [n, k], [m, n]")
    if a.shape[0] == 0 or b.shape[0] == 0:
        return
    if a.shape[1] == 0:  # an empty sum, and no address to take
        np.multiply(c, beta, out=c) if beta else np.asarray(c).fill(0)
        return
    with nogil:
        sgemm_nt(a.shape[0], b.shape[0], a.shape[1], &a[0, 0], a.shape[1], &b[0, 0], a.shape[1], beta, &c[0, 0],
                 c.shape[1])


def _loaded_blas_libraries():
    """Paths of the OpenBLAS copies in this process; NumPy's and SciPy's wheels each carry their own."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    return sorted(set(re.findall(r"(/\S*openblas\S*\.so\S*)", maps)))


def _thread_controls():
    """[(get, set)] for every OpenBLAS copy that exports its thread count."""
    controls = []
    for path in _loaded_blas_libraries():
        library = ctypes.CDLL(path)
        for prefix in ("scipy_", ""):
            for suffix in ("", "64_"):
                try:
                    getter = getattr(library, f"{prefix}openblas_get_num_threads{suffix}")
                    setter = getattr(library, f"{prefix}openblas_set_num_threads{suffix}")
                except AttributeError:
                    continue
                getter.restype, setter.argtypes, setter.restype = ctypes.c_int, [ctypes.c_int], None
                controls.append((getter, setter))
    return controls


_controls = None


@contextmanager
def single_threaded():
    """Hold every OpenBLAS copy to one thread inside the block, and restore its count after."""
    global _controls
    if _controls is None:
        _controls = _thread_controls()
    before = [get() for get, _ in _controls]
    for _, put in _controls:
        put(1)
    try:
        yield
    finally:
        for (_, put), count in zip(_controls, before, strict=True):
            put(count)


def describe():
    """Names of the BLAS libraries found, for `nanovllm info`."""
    return [Path(path).name for path in _loaded_blas_libraries()]
