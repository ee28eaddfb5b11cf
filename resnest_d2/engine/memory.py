"""How the process gets memory for tensors on the CPU."""

from __future__ import annotations

import ctypes
import os
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
#: Settings of malloc by the user, which stay.
_ENVIRONMENT = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed, for the next tensor of this process.

    It gives each large tensor back to the kernel otherwise, which zeroes its pages again for the next: a
    third of the time of training with large images on some virtual machines (docs/BENCHMARKS.md). The
    price is fragmentation, and that the process stays as large as it was at its largest.

    Returns:
        Whether it does: not where malloc is not glibc's, nor where the environment has settings for it.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _ENVIRONMENT):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # No tensor in a mapping of its own, and no end of the heap given back.
    return bool(mallopt and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
