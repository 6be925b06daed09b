"""The forward pass as a job of the thread team; its argument is a step_t."""


cdef void step_member(void *arg, int tid, int n) noexcept nogil
