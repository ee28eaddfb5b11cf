"""How the process gets memory for tensors on the CPU."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Callable, Optional

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
#: Settings of malloc by the user, which stay.
_ENVIRONMENT = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed, for the next tensor of this process.

    It gives each large tensor back to the kernel otherwise, which zeroes its pages again for the next: a
    third of the time of training with large images on some virtual machines (docs/BENCHMARKS.md). The
    price is that the process stays as large as it was at its largest, and fragmentation, which
    :func:`give_back_free_memory` bounds.

    Returns:
        Whether it does: not where malloc is not glibc's, nor where the environment has settings for it.
    """
    mallopt = _malloc("mallopt")
    # No tensor in a mapping of its own, and no end of the heap given back.
    return bool(mallopt and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


def give_back_free_memory() -> None:
    """Give all free pages back to the kernel, also those between others that are in use.

    While tensors change their sizes, they leave holes in malloc's heap that the next do not fit, whatever
    its settings are, and the process grows. Malloc itself returns no page from the middle of the heap.
    """
    malloc_trim = _malloc("malloc_trim")
    if malloc_trim:
        malloc_trim(0)


def _malloc(function: str) -> Optional[Callable[..., int]]:
    """A function of glibc; None where there is none, or where the user has made settings of malloc."""
    if sys.platform != "linux" or any(name in os.environ for name in _ENVIRONMENT):
        return None
    return getattr(ctypes.CDLL(None), function, None)
