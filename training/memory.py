"""Keeps freed memory in the process.

A training step frees and allocates tensors of megabytes all the time. By default the C library hands such memory
back to the system and takes it again, page by page, each page zeroed: where pages are dear (virtual machines), that
cost more than the arithmetic.
"""

from __future__ import annotations

import ctypes

# mallopt(3)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MOST_KEPT = 2**31 - 1
_LARGEST_ON_HEAP = 32 * 2**20  # the most that glibc takes
_AT_A_TIME = 64 * 2**20


def keep_freed_memory() -> bool:
    """Asks the C library to keep what is freed for the next allocation; whether it can (glibc does)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wishes = {_M_MMAP_THRESHOLD: _LARGEST_ON_HEAP, _M_TRIM_THRESHOLD: _MOST_KEPT, _M_TOP_PAD: _AT_A_TIME}
    return all(mallopt(option, value) for option, value in wishes.items())
