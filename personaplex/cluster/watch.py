"""Whether what was asked is answered: for both ends of a conversation's line."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BEAT_SEC = 1.0
"""Each end of a line says something so often."""
SILENT_SEC = 3.0
"""A replica that says nothing for so long is lost: its process hangs, or its machine or the network is gone."""
PAGE_SILENT_SEC = 10.0
"""A page that says nothing for so long has no visitor any more."""
ANSWER_WITHIN_SEC = 5.0
"""A frame takes less than 0.08 s, a prompt between frames less than 0.4 s; an engine that takes this long hangs."""
REPLACE_AFTER_SEC = 10.0
"""A replica whose engine hangs for so long says that it is not healthy, so that Serve puts another in its place."""


class Watch:
    """How long a frame of the microphone has waited for an answer; every method may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._asked_at: float | None = None

    def asked(self) -> None:
        with self._lock:
            self._asked_at = self._clock() if self._asked_at is None else self._asked_at

    def answered(self) -> float | None:
        """Seconds since the oldest question without an answer, if there was one."""
        with self._lock:
            asked_at, self._asked_at = self._asked_at, None
        return None if asked_at is None else self._clock() - asked_at

    def late_sec(self) -> float:
        """Seconds that the oldest question waits already; 0 if none does."""
        with self._lock:
            return 0.0 if self._asked_at is None else self._clock() - self._asked_at
