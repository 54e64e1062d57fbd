"""An agent's own voice back in the user's microphone, fed while it speaks: loudspeaker, room, delay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import signal

DECAY = 6.9  # e^-6.9 is 60 dB down


@dataclass(frozen=True)
class Echo:
    """The way from the agent's loudspeaker to the user's microphone."""

    level_db: float  # of what comes back, to what was said
    delay_ms: float  # until it comes back; at least a frame, as the model hears a frame before it speaks the next
    room_ms: float  # then until it is 60 dB down
    seed: int  # of the room

    def response(self, sample_rate_hz: int) -> np.ndarray:
        """[N] float32, the impulse response: silence for the delay, then noise that dies away."""
        length = max(1, round(self.room_ms / 1000 * sample_rate_hz))
        tail = np.random.default_rng(self.seed).standard_normal(length) * np.exp(-DECAY * np.arange(length) / length)
        tail *= 10 ** (self.level_db / 20) / np.sqrt(np.square(tail).sum())
        return np.concatenate([np.zeros(round(self.delay_ms / 1000 * sample_rate_hz)), tail]).astype(np.float32)


class EchoPath:
    """Gives each frame the echo of what was said in the frames before it."""

    def __init__(self, echo: Echo, sample_rate_hz: int, frame_samples: int) -> None:
        delay_samples = echo.delay_ms / 1000 * sample_rate_hz
        assert delay_samples >= frame_samples, "an echo is heard in a later frame than it is said in"
        self._response, self._frame_samples = echo.response(sample_rate_hz), frame_samples
        self._said = np.zeros(len(self._response) + frame_samples, np.float32)

    def said(self, pcm: np.ndarray) -> None:
        """pcm: [frame_samples] float32, the agent's newest frame."""
        self._said = np.concatenate([self._said[self._frame_samples :], pcm])

    def next_frame(self) -> np.ndarray:
        """[frame_samples] float32: what comes back during the frame that follows the one said last."""
        heard = np.concatenate([self._said, np.zeros(self._frame_samples, np.float32)])
        echo = signal.oaconvolve(heard, self._response)
        end = len(heard)
        return echo[end - self._frame_samples : end].astype(np.float32)
