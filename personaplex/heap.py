"""What the C library does with memory that tensors give back.

glibc returns large blocks to the system as soon as they are free, and gets the next ones from it page by page, each
page cleared anew: a third of the time that a processor takes to encode a recording, whose tensors have megabytes
and live for milliseconds. Kept, they serve the next tensor.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h

LARGEST_KEPT_BYTES = 64 << 20
"""Beyond it a block is the system's own as before: a model's weights on their way in."""

KEPT_BYTES = 128 << 20
"""At most so much lies unused at the heap's end."""


@cache
def keep_freed_memory() -> bool:
    """Ask glibc to keep it, for the whole process; False where there is another C library."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES) and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    )
