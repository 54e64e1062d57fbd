"""Which frames are played: those that would only add delay are left out."""

from __future__ import annotations

from collections import deque

from personaplex.audio.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ

FRAME_SEC = FRAME_SAMPLES / SAMPLE_RATE_HZ
MAX_AHEAD_SEC = 2 * FRAME_SEC
SHED_AFTER_FRAMES = 25


class Playout:
    """Keeps the speaker close behind the engine: frames that come in a burst are dropped, not played late."""

    def __init__(self) -> None:
        self._ahead_sec: deque[float] = deque(maxlen=SHED_AFTER_FRAMES)
        self.left_out = 0

    def accepts(self, ahead_sec: float) -> bool:
        """Whether to play a frame when ``ahead_sec`` of sound already waits."""
        self._ahead_sec.append(ahead_sec)
        always_ahead = len(self._ahead_sec) == SHED_AFTER_FRAMES and min(self._ahead_sec) >= FRAME_SEC
        if ahead_sec <= MAX_AHEAD_SEC and not always_ahead:
            return True
        self._ahead_sec.clear()
        self.left_out += 1
        return False
