"""Live streams at another rate, by a whole factor: as many samples come out of each piece as its length stands for.

A resampler for files holds samples back until it has seen what follows, which delays a frame by a packet. Here the
filter looks backwards only; sound comes out half its length later: 0.4 ms from 48 kHz, 1.3 ms from or to 8 kHz.
"""

from __future__ import annotations

import numpy as np

TAPS_PER_FACTOR = 20


def lowpass(factor: int) -> np.ndarray:
    """[20 · factor + 1] float32: a Hamming-windowed sinc that ends at the lower rate's half, with gain 1."""
    size = TAPS_PER_FACTOR * factor + 1
    at = np.arange(size) - size // 2
    taps = np.sinc(0.92 * at / factor) * np.hamming(size)  # most of the transition lies below the edge
    return (taps / taps.sum()).astype(np.float32)


class _Filter:
    def __init__(self, factor: int) -> None:
        self._taps = lowpass(factor)
        self._past = np.zeros(len(self._taps) - 1, np.float32)

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """[n] → [n]"""
        joined = np.concatenate([self._past, pcm])
        self._past = joined[len(pcm) :]
        return np.convolve(joined, self._taps, "valid") if len(pcm) else joined[:0]


class Decimator:
    """To a rate that is ``factor`` times lower."""

    def __init__(self, factor: int) -> None:
        self._factor, self._filter = factor, _Filter(factor)
        self._skip = factor - 1  # samples until the next that is kept

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """pcm: [n] float32, any n. Returns [n / factor], but for a rest that counts towards the next piece."""
        kept = self._filter.push(np.asarray(pcm, np.float32))[self._skip :: self._factor]
        self._skip = (self._skip - len(pcm)) % self._factor
        return kept


class Interpolator:
    """To a rate that is ``factor`` times higher."""

    def __init__(self, factor: int) -> None:
        self._factor, self._filter = factor, _Filter(factor)

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """pcm: [n] float32, any n. Returns [n · factor]."""
        spread = np.zeros(len(pcm) * self._factor, np.float32)
        spread[:: self._factor] = np.asarray(pcm, np.float32) * self._factor
        return self._filter.push(spread)
