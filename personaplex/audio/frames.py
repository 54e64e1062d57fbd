"""Streams of sound in frames: the rate, re-chunking, int16 and float32."""

from __future__ import annotations

import numpy as np

from personaplex.config import MimiConfig

SAMPLE_RATE_HZ = MimiConfig.sample_rate
FRAME_SAMPLES = MimiConfig().frame_samples
INT16_SCALE = 32_768


def split_frames(pcm: np.ndarray, frame_samples: int = FRAME_SAMPLES) -> np.ndarray:
    """[N] float32 → [T, frame_samples], T = ceil(N / frame_samples); the last is filled up with zeros."""
    num_frames = -(-len(pcm) // frame_samples)
    frames = np.zeros((num_frames, frame_samples), np.float32)
    frames.reshape(-1)[: len(pcm)] = pcm
    return frames


class FrameBuffer:
    """Re-chunks a stream: chunks of any size in, whole frames out."""

    def __init__(self, frame_samples: int = FRAME_SAMPLES) -> None:
        self.frame_samples = frame_samples
        self._rest = np.zeros(frame_samples, np.float32)
        self._fill_samples = 0

    @property
    def fill_samples(self) -> int:
        """Samples waiting for their frame to fill up."""
        return self._fill_samples

    def push(self, chunk: np.ndarray) -> np.ndarray:
        """chunk: [n] float32, any n. Returns the frames it completed, [k, frame_samples], k ≥ 0."""
        total = self._fill_samples + len(chunk)
        num_frames = total // self.frame_samples
        if not num_frames:
            self._rest[self._fill_samples : total] = chunk
            self._fill_samples = total
            return np.zeros((0, self.frame_samples), np.float32)
        joined = np.concatenate([self._rest[: self._fill_samples], np.asarray(chunk, np.float32)])
        cut = num_frames * self.frame_samples
        self._fill_samples = total - cut
        self._rest[: self._fill_samples] = joined[cut:]
        return joined[:cut].reshape(num_frames, self.frame_samples)

    def flush(self) -> np.ndarray:
        """The waiting samples as one frame filled up with zeros: [1, frame_samples], or [0, …] if none wait."""
        waiting = self._rest[: self._fill_samples].copy()
        self._fill_samples = 0
        return split_frames(waiting, self.frame_samples)


def from_int16(pcm: np.ndarray) -> np.ndarray:
    """[N] int16 samples → the same as float32 in -1..1."""
    return pcm.astype(np.float32) / INT16_SCALE


def to_int16(pcm: np.ndarray) -> np.ndarray:
    """float in [-1, 1) → int16, rounded; beyond full scale it is clipped."""
    return np.clip(np.rint(np.asarray(pcm, np.float64) * INT16_SCALE), -INT16_SCALE, INT16_SCALE - 1).astype(np.int16)
