"""What the C library does with memory that tensors give back.

glibc returns large blocks to the system as soon as they are free, and gets the next ones from it page by page, each
page cleared anew: a third of the time that a processor takes to encode a recording, whose tensors have megabytes
and live for milliseconds, and more than the arithmetic of a step of training. Kept, they serve the next tensor.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h

_LARGEST_KEPT_BYTES = (64 << 20, 32 << 20)
"""Beyond it a block is the system's own as before: a model's weights on their way in. Before 2.35 glibc took the
second at most."""

KEPT_FOR_FRAMES = 128 << 20
"""Enough for a conversation's frames and the pieces of a prompt."""

KEPT_FOR_TRAINING = (1 << 31) - 1

_most_kept = 0


def keep_freed_memory(most_bytes: int = KEPT_FOR_FRAMES) -> bool:
    """Ask glibc to keep what is free at its heap's end until that is more than ``most_bytes``; whether it will.

    For the whole process, and less is never kept than somebody asked for; heaps of threads other than the first are
    small, and those that nobody uses go as before. False where there is another C library.
    """
    global _most_kept
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is None:
        return False
    _most_kept = max(_most_kept, most_bytes)
    trims_late = bool(mallopt(_M_TRIM_THRESHOLD, _most_kept))
    return any(mallopt(_M_MMAP_THRESHOLD, largest) for largest in _LARGEST_KEPT_BYTES) and trims_late
