"""Large arrays on huge pages: weights and the KV cache, where a page walk for every 4 KiB costs bandwidth."""

from __future__ import annotations

import mmap

import numpy as np

# Below this the rounding to 2 MiB pages would cost more memory than it saves time.
MIN_HUGE_BYTES = 4 << 20


def zeros(nbytes: int) -> np.ndarray:
    """Return [nbytes] uint8, all zero, on a cache line; memory is taken from the system on first touch."""
    if nbytes < MIN_HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        raw = np.zeros(nbytes + 63, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + nbytes]
    area = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        area.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pass  # a kernel without transparent huge pages: the same memory, a little slower
    return np.frombuffer(area, np.uint8)
