"""The thread team (csrc/team.h), for other Cython modules."""


cdef extern from "csrc/team.h" nogil:
    ctypedef struct nv_team:
        pass
    Py_ssize_t nv_fetch_add(Py_ssize_t *counter)
    ctypedef void (*nv_team_fn)(void *arg, int tid, int num_threads) noexcept nogil


# Thin wrappers, because the C code is linked into this module alone.
cdef void team_run(nv_team *team, nv_team_fn fn, void *arg) noexcept nogil
cdef void team_barrier(nv_team *team) noexcept nogil


cdef class Team:
    cdef nv_team *ptr
    cdef readonly int num_threads
    cdef object owner_pid
    cpdef check_process(self)
