"""One team of threads for an engine: started once, asleep between steps."""

import os
from array import array

from libc.stdint cimport int64_t


cdef extern from "csrc/team.h" nogil:
    nv_team *nv_team_create(int num_threads)
    void nv_team_destroy(nv_team *team)
    void nv_team_run(nv_team *team, nv_team_fn fn, void *arg)
    void nv_team_barrier(nv_team *team)


cdef void team_run(nv_team *team, nv_team_fn fn, void *arg) noexcept nogil:
    nv_team_run(team, fn, arg)


cdef void team_barrier(nv_team *team) noexcept nogil:
    nv_team_barrier(team)


cdef class Team:
    """`num_threads` threads, the caller included.

    Raises:
        ValueError: num_threads is not in 1 .. 1024.
        MemoryError: the system refuses that many threads.
    """

    def __cinit__(self, int num_threads):
        if not 1 <= num_threads <= 1024:
            raise ValueError(f"threads must be from 1 to 1024, found {num_threads}")
        self.ptr = nv_team_create(num_threads)
        if self.ptr == NULL:
            raise MemoryError(f"the system refused to start {num_threads} threads")
        self.num_threads = num_threads
        self.owner_pid = os.getpid()

    def __dealloc__(self):
        # In a forked child the workers do not exist; joining them would wait for ever.
        if self.ptr != NULL and self.owner_pid == os.getpid():
            nv_team_destroy(self.ptr)

    cpdef check_process(self):
        """Raise RuntimeError in a forked child, where the team's threads do not exist."""
        if self.owner_pid != os.getpid():
            raise RuntimeError("this engine was made before a fork; its threads exist only in the parent process: "
                               "make the LLM in the child")


cdef struct count_t:
    nv_team *team
    Py_ssize_t rounds
    int64_t *slots


cdef void count_member(void *arg, int tid, int num_threads) noexcept nogil:
    cdef count_t *job = <count_t *>arg
    cdef Py_ssize_t i
    cdef int other
    for i in range(job.rounds):
        job.slots[tid * 8] += 1
        nv_team_barrier(job.team)
        for other in range(num_threads):
            if job.slots[other * 8] != i + 1:
                job.slots[tid * 8 + 1] += 1  # somebody passed the barrier before all had arrived
        nv_team_barrier(job.team)


def barrier_violations(Team team, Py_ssize_t rounds):
    """Cross `rounds` pairs of barriers on every thread; return how often one was crossed too early (tests)."""
    cdef count_t job
    # A cache line for each thread: how often it arrived, and how often it saw somebody missing.
    cdef int64_t[::1] slots = array("q", bytes(64 * team.num_threads))
    job.team = team.ptr
    job.rounds = rounds
    job.slots = &slots[0]
    team.check_process()
    with nogil:
        team_run(team.ptr, count_member, &job)
    cdef int tid
    violations = 0
    for tid in range(team.num_threads):
        if slots[tid * 8] != rounds:
            violations += 1
        violations += slots[tid * 8 + 1]
    return violations
