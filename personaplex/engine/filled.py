"""Bounds on the filled part of each slot's cache, kept on the host.

The state on the device holds the exact positions. A frame needs a bound before it is launched, and reading the
device for it would make the host wait.
"""

from __future__ import annotations

from collections.abc import Iterable

SPAN_STEP_FRAMES = 64
"""Attention reads the cache up to a multiple of this, so that few different shapes occur."""


class FilledBounds:
    """At most how many frames of its cache each slot has filled."""

    def __init__(self, slots: int, context: int) -> None:
        self._context = context
        self._frames = [0] * slots

    def __getitem__(self, row: int) -> int:
        return min(self._frames[row], self._context)

    def position(self, row: int) -> int:
        """Calls that a slot has made: what its cache was given, or one more, as the first of a stream gives nothing."""
        return self._frames[row]

    def put(self, row: int, frames: int) -> None:
        """Note that a slot is ``frames`` calls into its stream."""
        self._frames[row] = frames

    def advance(self, row: int, frames: int = 1) -> None:
        """Note that a slot is about to make ``frames`` more calls."""
        self._frames[row] += frames

    def span(self, rows: Iterable[int]) -> int:
        """Entries that attention must read for these slots: a multiple of ``SPAN_STEP_FRAMES``, or the whole cache."""
        longest = max((self[row] for row in rows), default=1)
        return min(-(-longest // SPAN_STEP_FRAMES) * SPAN_STEP_FRAMES, self._context)
