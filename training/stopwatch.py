"""The time that schedules follow."""

from __future__ import annotations

import time

_LONGEST_LAP_SEC = 5.0


class Stopwatch:
    """Adds up laps. Of a longer lap only a few seconds count: the process was stopped meanwhile."""

    def __init__(self, elapsed_sec: float = 0.0) -> None:
        self.elapsed_sec, self._last_sec = elapsed_sec, time.monotonic()

    def lap(self) -> float:
        """Ends a lap; returns all seconds so far."""
        now_sec = time.monotonic()
        self.elapsed_sec += min(now_sec - self._last_sec, _LONGEST_LAP_SEC)
        self._last_sec = now_sec
        return self.elapsed_sec
