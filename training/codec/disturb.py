"""Augmentations of speech for the codec: rooms, noises, telephones. All on [T] float32 at 24 kHz."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.codec.model import SAMPLE_RATE_HZ
from training.users import through_mu_law

_ROOM_SEC = (0.1, 0.6)  # until the sound is 60 dB down
_ROOM_DB = (-16.0, 0.0)  # of what comes back, to what comes straight
_EARLY_SEC = 0.025  # belongs to the voice: what comes back later blurs it
_TELEPHONE_HZ = (300.0, 3400.0)


def room(wave: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The wave as a microphone in some room hears it, and the same without the room's tail."""
    length = int(draw.uniform(*_ROOM_SEC) * SAMPLE_RATE_HZ)
    tail = draw.standard_normal(length).astype(np.float32) * np.exp(-6.9 * np.arange(length) / length)
    tail[: int(draw.uniform(0.001, 0.01) * SAMPLE_RATE_HZ)] = 0.0
    tail *= 10 ** (draw.uniform(*_ROOM_DB) / 20) / max(1e-6, float(np.sqrt(np.square(tail).sum())))
    tail[0] = 1.0
    size = len(wave) + length
    spectrum, early = np.fft.rfft(wave, size), tail.copy()
    early[int(_EARLY_SEC * SAMPLE_RATE_HZ) :] = 0.0
    heard, wanted = (np.fft.irfft(spectrum * np.fft.rfft(part, size), size)[: len(wave)] for part in (tail, early))
    return heard.astype(np.float32), wanted.astype(np.float32)


def telephone(wave: np.ndarray, *, coarse: bool = False) -> np.ndarray:
    """300 to 3 400 Hz; `coarse`: in the 8 bits of ITU-T G.711's curve, too."""
    low_hz, high_hz = _TELEPHONE_HZ
    hz = np.maximum(np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE_HZ), 1e-3)
    bins = np.fft.rfft(wave) / (1 + (hz / low_hz) ** -8) / (1 + (hz / high_hz) ** 16)
    narrow = np.fft.irfft(bins, len(wave)).astype(np.float32)
    if not coarse:
        return narrow
    return through_mu_law(narrow).astype(np.float32)


def _coloured(length: int, draw: np.random.Generator, corner_hz: float, slope: float) -> np.ndarray:
    """Noise that falls with frequency to the power `slope` above a corner."""
    bins = np.fft.rfft(draw.standard_normal(length, dtype=np.float32))
    hz = np.fft.rfftfreq(length, 1 / SAMPLE_RATE_HZ)
    return np.fft.irfft(bins * (1 + hz / corner_hz) ** -slope, length)


def _white(length: int, draw: np.random.Generator) -> np.ndarray:
    return draw.standard_normal(length, dtype=np.float32)


def falling(length: int, draw: np.random.Generator) -> np.ndarray:
    return _coloured(length, draw, draw.uniform(50.0, 1000.0), draw.uniform(0.5, 1.0))


def rumble(length: int, draw: np.random.Generator) -> np.ndarray:
    """Wind on a microphone, traffic behind a wall."""
    return _coloured(length, draw, draw.uniform(20.0, 80.0), draw.uniform(2.0, 3.0))


def fan(length: int, draw: np.random.Generator) -> np.ndarray:
    """A hum with its overtones in a wind."""
    time_sec = np.arange(length) / SAMPLE_RATE_HZ
    base_hz, hum = draw.uniform(45.0, 220.0), np.zeros(length)
    for overtone in range(1, 9):
        hum += draw.uniform(0.0, 1.0) / overtone * np.sin(2 * np.pi * (base_hz * overtone * time_sec + draw.random()))
    return hum + draw.uniform(0.3, 2.0) * falling(length, draw)


def clatter(length: int, draw: np.random.Generator) -> np.ndarray:
    """Keys, cups: short bursts over little else."""
    noise = 0.02 * draw.standard_normal(length)
    for _ in range(int(draw.integers(2, 10))):
        at, size = int(draw.integers(length)), int(draw.uniform(0.004, 0.05) * SAMPLE_RATE_HZ)
        burst = draw.standard_normal(size) * np.exp(-6.0 * np.arange(size) / size) * draw.uniform(0.2, 1.0)
        noise[at : at + size] += burst[: length - at]
    return noise


_NOISES: tuple[tuple[Callable[[int, np.random.Generator], np.ndarray], float], ...] = (
    (_white, 0.25),
    (falling, 0.35),
    (rumble, 0.15),
    (fan, 0.15),
    (clatter, 0.1),
)


def noise(length: int, draw: np.random.Generator) -> np.ndarray:
    """[length] float32: noise of a random kind, with a root mean square of one."""
    makers, shares = zip(*_NOISES, strict=True)
    made = makers[int(draw.choice(len(makers), p=shares))](length, draw)
    return (made / max(1e-6, float(made.std()))).astype(np.float32)
