"""Tones for tests of sound, and their pitch."""

import numpy as np

from personaplex.audio.frames import SAMPLE_RATE_HZ


def tone(duration_sec: float, rate_hz: int = SAMPLE_RATE_HZ, hz: float = 440.0, gain: float = 0.5) -> np.ndarray:
    return (gain * np.sin(2 * np.pi * hz * np.arange(int(duration_sec * rate_hz)) / rate_hz)).astype(np.float32)


def peak_hz(pcm: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(pcm * np.hanning(len(pcm))))
    return float(np.argmax(spectrum) * SAMPLE_RATE_HZ / len(pcm))
