"""Where the lm_head collects the largest logits of rows that need no others: for each thread those of its columns.

Owns the memory and the limit of k. Must not know how a token is drawn from them.
"""

import numpy as np

from libc.math cimport INFINITY
from libc.stdint cimport int32_t

from nanovllm.kernels.isa cimport NV_TOP_MOST, nv_top

# Largest k; ids that tie with the k-th are kept too.
MOST = NV_TOP_MOST


cdef class TopRows:
    """Room for the k largest logits of each row.

    Args:
        num_threads: of the team that runs the lm_head.
        ks: [num_rows] int32, each 1 to `MOST`.

    Raises:
        ValueError: a k is out of range.
    """

    def __cinit__(self, int num_threads, const int32_t[::1] ks):
        cdef Py_ssize_t i
        cdef int tid
        self.num_threads, self.num_rows = num_threads, ks.shape[0]
        self.keep = np.empty(num_threads * ks.shape[0] * sizeof(nv_top) + 1, np.uint8)
        cdef unsigned char[::1] view = self.keep
        self.tops = <nv_top *>&view[0]
        for i in range(ks.shape[0]):
            if not 1 <= ks[i] <= NV_TOP_MOST:
                raise ValueError(f"k of row {i} is {ks[i]}, expected 1 to {NV_TOP_MOST}")
            for tid in range(num_threads):
                self.tops[tid * self.num_rows + i].bound = -INFINITY
                self.tops[tid * self.num_rows + i].k = ks[i]
                self.tops[tid * self.num_rows + i].count = 0
