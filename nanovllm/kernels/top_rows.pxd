"""The largest logits of some rows, as the lm_head leaves them."""

from nanovllm.kernels.isa cimport nv_top


cdef class TopRows:
    cdef nv_top *tops                   # [num_threads, num_rows], one array after another
    cdef readonly Py_ssize_t num_rows
    cdef readonly int num_threads
    cdef object keep                    # the memory of `tops`
