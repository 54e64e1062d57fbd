"""Encodes and decodes many recordings at once, in the trainable codec's fast form.

Each recording is a stream of its own, from a fresh state; the codes are those of the streaming codec
(but for ties that rounding decides: under one code in two thousand). Recordings of about the same
length are run together, padded at the end, which a causal codec never notices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from training.codec.export import import_codec
from training.codec.model import SAMPLE_RATE_HZ, Codec

_BATCH_SEC = 96.0  # audio in one pass: enough to keep two cores busy, little enough for the cache


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Groups indices of similar length, each group at most `budget` when padded."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and lengths[index] * (len(group) + 1) > budget:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


@torch.inference_mode()
def encode_many(codec: Codec | Path, recordings: Sequence[np.ndarray], *, fill_last: bool = True) -> list[np.ndarray]:
    """recordings: [T] float32 (or int16) at 24 kHz -> for each, codes [8, frames] int16.

    A last, partial frame is filled with zeros, or left out with `fill_last=False`.
    """
    codec = import_codec(codec) if isinstance(codec, Path) else codec
    frame = codec.shape.frame_samples
    frames = [-(-len(r) // frame) if fill_last else len(r) // frame for r in recordings]
    made: list[np.ndarray] = [np.zeros((codec.shape.num_codebooks, 0), np.int16)] * len(recordings)
    for group in _batches(frames, int(_BATCH_SEC * SAMPLE_RATE_HZ / frame)):
        longest = max(frames[index] for index in group)
        if longest == 0:
            continue
        waves = np.zeros((len(group), longest * frame), np.float32)
        for row, index in enumerate(group):
            recording = recordings[index][: frames[index] * frame]
            waves[row, : len(recording)] = recording if recording.dtype != np.int16 else recording / 32768.0
        codes = codec.quantizer.encode(codec.encode(torch.from_numpy(waves))).to(torch.int16).numpy()
        for row, index in enumerate(group):
            made[index] = codes[row, :, : frames[index]].copy()
    return made


@torch.inference_mode()
def decode_many(codec: Codec | Path, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """codes: [up to 8, frames] integers -> for each, [frames * 1920] float32 at 24 kHz."""
    codec = import_codec(codec) if isinstance(codec, Path) else codec
    frame, frames = codec.shape.frame_samples, [c.shape[1] for c in codes]
    made: list[np.ndarray] = [np.zeros(0, np.float32)] * len(codes)
    for group in _batches(frames, int(_BATCH_SEC * SAMPLE_RATE_HZ / frame)):
        longest = max(frames[index] for index in group)
        if longest == 0:
            continue
        padded = np.zeros((len(group), codes[group[0]].shape[0], longest), np.int64)
        for row, index in enumerate(group):
            padded[row, :, : frames[index]] = codes[index]
        waves = codec.decode(codec.quantizer.decode(torch.from_numpy(padded))).numpy()
        for row, index in enumerate(group):
            made[index] = waves[row, : frames[index] * frame].copy()
    return made
