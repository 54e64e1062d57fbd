"""What the C library does with memory that tensors give back.

glibc returns large blocks to the system as soon as they are free, and gets the next ones from it page by page, each
page cleared anew: a third of the time that a processor takes to encode a recording, whose tensors have megabytes
and live for milliseconds, and more than the arithmetic of a step of training. Kept, they serve the next tensor.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h

_LARGEST_KEPT_BYTES = 64 << 20
"""Beyond it a block is the system's own as before: a model's weights on their way in."""

LITTLE_BYTES = 128 << 20
"""Enough for the frames of a conversation and the pieces of a prompt."""

ALL_BYTES = (1 << 31) - 1

_most_kept = 0


def keep_freed_memory(most_bytes: int = LITTLE_BYTES) -> bool:
    """Ask glibc to keep so much at its heap's end, for the whole process; once it keeps more, that stays.

    False where there is another C library.
    """
    global _most_kept
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is None:
        return False
    _most_kept = max(_most_kept, most_bytes)
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES) and mallopt(_M_TRIM_THRESHOLD, _most_kept))
