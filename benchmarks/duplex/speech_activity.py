"""Where a recording holds speech: Silero VAD, as the published scripts use it."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from silero_vad import get_speech_timestamps, load_silero_vad

from benchmarks.duplex.metrics import Span

SAMPLE_RATE_HZ = 16_000


@cache
def _model() -> torch.nn.Module:
    return load_silero_vad()


def speech_spans(pcm: np.ndarray) -> list[Span]:
    """pcm: [N] float32 at 16 kHz → stretches of speech in seconds, with Silero's own settings."""
    found = get_speech_timestamps(torch.from_numpy(np.ascontiguousarray(pcm, np.float32)), _model())
    return [(span["start"] / SAMPLE_RATE_HZ, span["end"] / SAMPLE_RATE_HZ) for span in found]


def to_tenths(spans: list[Span], duration_sec: float) -> list[Span]:
    """As ``return_seconds=True`` gives them, which ``eval_backchannel.py`` asks for: to 0.1 s, within the file."""
    return [(max(round(start, 1), 0), min(round(end, 1), duration_sec)) for start, end in spans]
