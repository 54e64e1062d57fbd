"""Settings of the whole process that computing on the CPU needs: memory that malloc keeps, and threads."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h

_LARGEST_KEPT_BYTES = (64 << 20, 32 << 20)
"""Largest block that malloc keeps; larger ones, a model's weights on their way in, go back to the system as before.
glibc before 2.35 accepts the second at most."""

KEPT_FOR_FRAMES = 128 << 20
"""Enough for a conversation's frames and the pieces of a prompt."""

KEPT_FOR_TRAINING = (1 << 31) - 1

SMALL_WIDTH = 1024
"""Width of a language model up to which one core keeps up."""

_most_kept = 0
_threads_before: int | None = None


def prepare_for_cpu(width: int) -> None:
    """Set the process up for a language model of this width on the CPU: its threads, and the memory it keeps.

    One thread for a small model: two wait for each other in every layer whenever something else wants a core. A
    larger one gets back the threads that there were. Left alone where ``OMP_NUM_THREADS`` is set.
    """
    global _threads_before
    keep_freed_memory()
    if "OMP_NUM_THREADS" in os.environ:
        return
    if width <= SMALL_WIDTH:
        _threads_before = _threads_before or torch.get_num_threads()
        torch.set_num_threads(1)
    else:
        use_all_threads()


def use_all_threads() -> None:
    """Give back the threads that ``prepare_for_cpu`` took away; training gains from them with any model."""
    global _threads_before
    if _threads_before is not None:
        torch.set_num_threads(_threads_before)
        _threads_before = None


def keep_freed_memory(most_bytes: int = KEPT_FOR_FRAMES) -> bool:
    """Ask glibc to keep up to ``most_bytes`` of free memory at the end of its heap → whether it will.

    By itself glibc returns large blocks to the system as soon as they are free, and gets the next ones page by page,
    each page cleared anew: a third of the time that encoding a recording takes, whose tensors have megabytes and live
    for milliseconds, and more than the arithmetic of a training step. The largest request counts. Heaps of threads
    other than the first are small and stay as they are. False with another C library.
    """
    global _most_kept
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is None:
        return False
    _most_kept = max(_most_kept, most_bytes)
    trims_late = bool(mallopt(_M_TRIM_THRESHOLD, _most_kept))
    return any(mallopt(_M_MMAP_THRESHOLD, largest) for largest in _LARGEST_KEPT_BYTES) and trims_late
