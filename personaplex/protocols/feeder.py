"""A client's sound in frames, handed to the engine no faster than it answers; silence where the client sends none."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

from personaplex.audio.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ, FrameBuffer
from personaplex.messages import Limits

FRAME_SEC = FRAME_SAMPLES / SAMPLE_RATE_HZ
MOST_ON_THE_WAY = Limits.max_waiting_frames
"""A server drops the oldest of more than that."""
MOST_WAITING_SEC = 30.0
"""Sound that may wait for the engine, as of a recording sent in one piece; beyond it the oldest is dropped."""
GAP_SEC = 0.4
"""A client that sends nothing for so long is taken to be silent; a network may hold packets back for less."""
QUIET_CLIENT_SEC = 60.0
"""Silence is filled in for a client that was heard of within this time; then the server's own rule ends the talk."""
LIVE_SHARE = 0.5
"""Sound that took at least this share of its own length to arrive comes from a microphone and not from a file."""


class Feeder:
    """Frames between a client and ``push`` of a conversation. For one event loop; it does not block."""

    def __init__(
        self, push: Callable[[np.ndarray], None], *, keeps_early: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``keeps_early``: a recording that comes before the conversation is live waits for it.

        Of a microphone only what comes afterwards counts: what somebody said a minute ago is not to be answered now.
        """
        self._push, self._keeps_early, self._clock = push, keeps_early, clock
        self._frames = FrameBuffer()
        self._waiting: deque[np.ndarray] = deque(maxlen=round(MOST_WAITING_SEC / FRAME_SEC))
        self._on_the_way = 0
        self._is_live = False
        self._came_at: tuple[float, float] | None = None  # the first sound and the last
        self._early_samples = 0
        self._alive_at = clock()
        self.fed = 0
        self.dropped = 0

    @property
    def unfed(self) -> int:
        """Frames that wait here, one that is not full yet among them."""
        return len(self._waiting) + (self._frames.fill_samples > 0)

    def put(self, pcm: np.ndarray) -> None:
        """Sound of the client: [n] float32 at 24 kHz, any n."""
        now = self._clock()
        self._came_at = (self._came_at[0] if self._came_at else now, now)
        if not self._is_live:
            if not self._keeps_early:
                return
            self._early_samples += len(pcm)
        for frame in self._frames.push(pcm):
            self.dropped += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(frame)
        self._feed()

    def alive(self) -> None:
        """The client sent something, sound or not."""
        self._alive_at = self._clock()

    def begin(self) -> None:
        """The conversation is live."""
        self._is_live = True
        if self._came_at is not None and self._came_at[1] - self._came_at[0] >= LIVE_SHARE * self._early_sec:
            self.clear()
        self._feed()

    def answered(self) -> None:
        """The engine has answered a frame."""
        self._on_the_way -= 1
        self._feed()

    def clear(self) -> None:
        """Forget what was not handed over yet."""
        self._waiting.clear()
        self._frames = FrameBuffer()

    def fill_gap(self) -> None:
        """Hand over a frame of silence if the client sends nothing: to be called once a frame's time."""
        is_busy = self._waiting or self._on_the_way >= MOST_ON_THE_WAY
        if not self._is_live or is_busy or self._clock() - self._alive_at >= QUIET_CLIENT_SEC:
            return
        if self._came_at is not None and self._clock() - self._came_at[1] < GAP_SEC:
            return
        rest = self._frames.flush()  # the last words of a recording
        self._waiting.append(rest[0] if len(rest) else np.zeros(FRAME_SAMPLES, np.float32))
        self._feed()

    @property
    def _early_sec(self) -> float:
        return self._early_samples / SAMPLE_RATE_HZ

    def _feed(self) -> None:
        while self._is_live and self._waiting and self._on_the_way < MOST_ON_THE_WAY:
            self._on_the_way += 1
            self.fed += 1
            self._push(self._waiting.popleft())
