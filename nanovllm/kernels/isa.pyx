"""Picks the instruction-set level of the C kernels once, at import.

The strongest level that the CPU and the operating system support is taken; NANOVLLM_ISA forces a weaker one. A level
that this machine cannot run is refused with a sentence instead of an illegal instruction later.
"""

import os

from nanovllm.errors import ConfigError

cdef const nv_kernels *active = NULL


cdef const nv_kernels *kernels() noexcept nogil:
    return active


cdef list names_of(const nv_kernels *const *table):
    cdef int i = 0
    names = []
    while table[i] != NULL:
        names.append((<bytes>table[i].name).decode())
        i += 1
    return names


def available_levels():
    """Names of the levels that this machine can run, weakest first."""
    return names_of(nv_available_levels())


def testable_levels():
    """The same and "amx_emulated", AMX's code with its tiles in plain C, which needs AVX2."""
    return names_of(nv_testable_levels())


def active_level():
    """Name of the level in use."""
    return (<bytes>active.name).decode()


def has_bf16_units():
    """Whether the level in use multiplies bfloat16 in hardware."""
    return active_level() in ("avx512_bf16", "amx")


def use_level(name):
    """Switch every kernel to level `name`; meant for tests and for NANOVLLM_ISA.

    Raises:
        ConfigError: this machine or this build does not have the level.
    """
    global active
    names = testable_levels()
    if name not in names:
        raise ConfigError(f"instruction set {name!r} (NANOVLLM_ISA) is not available on this machine; "
                          f"it has {', '.join(available_levels())}: unset the variable or name one of these")
    active = nv_testable_levels()[names.index(name)]


use_level(os.environ.get("NANOVLLM_ISA") or available_levels().pop())
