"""The newest frames of a microphone, between the thread that brings them and the one that takes them."""

from __future__ import annotations

from collections import deque

import numpy as np


class Inbox:
    """The newest frames of a microphone: at most ``limit`` wait, the oldest gives way and is counted."""

    def __init__(self, limit: int):
        self._limit = limit
        self._waiting: deque[tuple[np.ndarray, float]] = deque()
        self.dropped = 0

    def put(self, pcm: np.ndarray, now: float) -> bool:
        """False when an older frame was dropped for this one."""
        self._waiting.append((pcm, now))
        if len(self._waiting) <= self._limit:
            return True
        self._waiting.popleft()
        self.dropped += 1
        return False

    def take(self) -> tuple[np.ndarray, float] | None:
        """The oldest frame and when it came."""
        return self._waiting.popleft() if self._waiting else None

    def clear(self) -> None:
        self._waiting.clear()
