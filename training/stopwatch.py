"""The time that schedules follow."""

from __future__ import annotations

import time
from collections.abc import Callable

_LONGEST_LAP_SEC = 5.0


class Stopwatch:
    """Adds up laps. Of a longer lap only a few seconds count: the process was stopped meanwhile.

    clock: in seconds; `time.process_time` counts the process's own CPU time, for a machine with other work.
    """

    def __init__(self, elapsed_sec: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.elapsed_sec, self._clock, self._last_sec = elapsed_sec, clock, clock()

    def lap(self) -> float:
        """Ends a lap; returns all seconds so far."""
        now_sec = self._clock()
        self.elapsed_sec += min(now_sec - self._last_sec, _LONGEST_LAP_SEC)
        self._last_sec = now_sec
        return self.elapsed_sec
