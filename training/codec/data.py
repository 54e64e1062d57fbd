"""Random crops of the training speech, with the disturbances a microphone adds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.codec import disturb
from training.codec.model import SAMPLE_RATE_HZ
from training.codec.speech import SLOT_SAMPLES, UNKNOWN_PHONE
from training.prefetch import prefetched

IGNORED = -100  # cross-entropy's mark for "no label"
TONE_HZ = 440.0
_GAIN_DB = (-18.0, 6.0)
_CLEAN_GAIN_DB = (-4.0, 2.0)
_SILENT, _TONE, _FADED_IN, _NOISY, _TELEPHONE, _ROOM = 0.03, 0.03, 0.08, 0.33, 0.08, 0.12  # shares of the crops
_NOISE_SNR_DB = (3.0, 40.0)
_SILENCE_NOISE_DB = (-75.0, -45.0)  # of full scale


@dataclass
class Batch:
    """`heard`: [B, T] float32, what the encoder gets. `wanted`: the same, without noise. `phones`: [B, slots] int64."""

    heard: Tensor
    wanted: Tensor
    phones: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(part.to(device, non_blocking=True) for part in (self.heard, self.wanted, self.phones)))


class SpeechCrops:
    """Draws batches from a folder of `training.codec.speech`."""

    def __init__(
        self, folder: Path, *, frames: int, batch: int, frame_samples: int, clean: bool = False, seed: int = 0
    ) -> None:
        """`clean`: nothing but the recordings, a little louder or softer."""
        self._pcm = np.memmap(folder / "pcm.i16", np.int16, mode="r")
        self._labels = np.fromfile(folder / "phones.u8", np.uint8)
        self.phones: list[str] = json.loads((folder / "phones.json").read_text())
        self._clean = clean
        self._length, self._batch = frames * frame_samples, batch
        self._draw = np.random.default_rng(seed)
        if len(self._pcm) <= self._length + SLOT_SAMPLES:
            raise ValueError(f"{folder} holds less than one crop of {self._length} samples; speak more")

    @property
    def hours(self) -> float:
        return len(self._pcm) / SAMPLE_RATE_HZ / 3600

    def batch(self) -> Batch:
        rows = [self._row() for _ in range(self._batch)]
        heard, wanted, phones = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
        return Batch(heard, wanted, phones)

    def _row(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        draw, length = self._draw, self._length
        slots = length // SLOT_SAMPLES
        kind = 1.0 if self._clean else draw.random()
        if kind < _SILENT + _TONE:
            wave = np.zeros(length, np.float32) if kind < _SILENT else self._tone()
            noisy = draw.random() < _NOISY
            heard = self._noised(wave, draw.uniform(*_SILENCE_NOISE_DB)) if noisy else wave
            return heard, wave, np.zeros(slots, np.int64)
        start = int(draw.integers(len(self._pcm) - length - SLOT_SAMPLES))
        wave = self._pcm[start : start + length].astype(np.float32) / 32768.0
        wave *= 10 ** (draw.uniform(*(_CLEAN_GAIN_DB if self._clean else _GAIN_DB)) / 20)
        first = (start + SLOT_SAMPLES // 2) // SLOT_SAMPLES
        labels = self._labels[first : first + slots].astype(np.int64)
        labels[labels == UNKNOWN_PHONE] = IGNORED
        if self._clean:
            return (wave := np.clip(wave, -1.0, 1.0)), wave, labels
        if draw.random() < _FADED_IN:  # a stream that starts before the speech does
            cut = int(draw.integers(1, slots))
            wave[: cut * SLOT_SAMPLES] = 0.0
            labels[:cut] = 0
        if draw.random() < _TELEPHONE:
            wave = disturb.telephone(wave, coarse=draw.random() < 0.5)
        heard, wave = disturb.room(wave, draw) if draw.random() < _ROOM else (wave, wave)
        heard, wave = np.clip(heard, -1.0, 1.0), np.clip(wave, -1.0, 1.0)
        if draw.random() < _NOISY:
            speech_db = 20 * np.log10(max(float(wave.std()), 1e-4))
            heard = self._noised(heard, speech_db - draw.uniform(*_NOISE_SNR_DB))
        return heard, wave, labels

    def _tone(self) -> np.ndarray:
        """440 Hz at any level and phase; half of the time it begins inside the crop."""
        time = np.arange(self._length) / SAMPLE_RATE_HZ
        tone = np.sin(2 * np.pi * TONE_HZ * time + self._draw.uniform(0, 2 * np.pi))
        tone *= self._draw.uniform(0.05, 0.8)
        if self._draw.random() < 0.5:
            tone[: int(self._draw.integers(self._length // 2))] = 0.0
        return tone.astype(np.float32)

    def _noised(self, wave: np.ndarray, level_db: float) -> np.ndarray:
        """Adds some noise of `level_db` below full scale."""
        return wave + disturb.noise(len(wave), self._draw) * np.float32(10 ** (level_db / 20))


class PrefetchedCrops:
    """Batches that threads draw ahead of their use, one thread for each of `sources`."""

    def __init__(self, sources: Iterable[SpeechCrops]) -> None:
        sources = list(sources)
        self._turns = itertools.cycle([prefetched(source.batch) for source in sources])
        self.phones, self.hours = sources[0].phones, sources[0].hours

    def batch(self) -> Batch:
        return next(next(self._turns))
