"""Settings of malloc for tensors on the CPU."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Callable, Optional

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
#: The user's own settings of malloc, which are left alone.
_ENVIRONMENT = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let malloc keep freed memory for the next tensors of this process.

    Otherwise it returns each large tensor to the kernel, which zeroes the pages again for the next one: a
    third of the time of training with large images on some virtual machines (docs/BENCHMARKS.md). The
    price is that the process stays at its peak size, and fragmentation, which
    :func:`give_back_free_memory` bounds.

    Returns:
        Whether it does: False if malloc is not glibc's, or if the environment has settings for it.
    """
    mallopt = _malloc("mallopt")
    # Allocate no tensor in its own mapping, and never return the end of the heap.
    return bool(mallopt and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


def give_back_free_memory() -> None:
    """Return all free pages to the kernel, including those between pages in use.

    Tensors of changing sizes leave holes in malloc's heap that the next ones do not fit, whatever its
    settings, so the process grows. Malloc by itself returns no pages from the middle of the heap.
    """
    malloc_trim = _malloc("malloc_trim")
    if malloc_trim:
        malloc_trim(0)


def _malloc(function: str) -> Optional[Callable[..., int]]:
    """Return a function of glibc, or None if there is none or the user has set options of malloc."""
    if sys.platform != "linux" or any(name in os.environ for name in _ENVIRONMENT):
        return None
    return getattr(ctypes.CDLL(None), function, None)
