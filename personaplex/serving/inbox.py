"""The newest frames of a microphone, between the thread that brings them and the one that takes them."""

from __future__ import annotations

from collections import deque

import numpy as np


class Inbox:
    """The newest frames of a microphone: at most ``limit`` wait, the oldest gives way and is counted."""

    def __init__(self, limit: int):
        self._limit = limit
        self._waiting: deque[tuple[np.ndarray, float]] = deque()
        self._is_held = False
        self._spared = 0  # frames beyond the limit that may wait, until no more than the limit do
        self.dropped = 0

    def put(self, pcm: np.ndarray, now: float) -> bool:
        """False when an older frame was dropped for this one."""
        self._waiting.append((pcm, now))
        if self._is_held or len(self._waiting) <= self._limit + self._spared:
            return True
        self._waiting.popleft()
        self.dropped += 1
        return False

    def take(self) -> tuple[np.ndarray, float] | None:
        """The oldest frame and when it came."""
        found = self._waiting.popleft() if self._waiting else None
        self._spared = self._spared if self._over_limit else 0
        return found

    def hold(self) -> None:
        """Drop nothing until ``release``: a conversation is told something, and the microphone has to wait."""
        self._is_held = True

    def release(self) -> None:
        """As many as wait now may wait until whoever takes them has caught up."""
        self._is_held, self._spared = False, self._over_limit

    @property
    def _over_limit(self) -> int:
        return max(0, len(self._waiting) - self._limit)

    def __len__(self) -> int:
        return len(self._waiting)

    def clear(self) -> None:
        self._waiting.clear()
        self._spared = 0
