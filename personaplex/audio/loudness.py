"""Loudness after ITU-R BS.1770."""

from __future__ import annotations

import warnings

import numpy as np

from personaplex.audio.frames import SAMPLE_RATE_HZ
from personaplex.config import PromptConfig
from personaplex.errors import PromptError


def normalize_loudness(
    pcm: np.ndarray,
    lufs: float = PromptConfig.voice_lufs,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
) -> np.ndarray:
    """Set a voice prompt's integrated loudness (ITU-R BS.1770, as pyloudnorm computes it).

    pcm: [N] float32. Returns [N] float32 within -1..1: what is quiet but for a few loud moments is raised as far as
    these allow. Raises PromptError when there is too little sound to measure: fewer than the 0.4 s of one gating
    block, or nothing above -70 LUFS.
    """
    import pyloudnorm  # here, because it loads SciPy, and listing voices should not wait for that

    meter = pyloudnorm.Meter(sample_rate_hz)
    if len(pcm) < meter.block_size * sample_rate_hz:
        raise PromptError(
            f"the voice is {len(pcm) / sample_rate_hz:.2f} s long; its loudness needs at least {meter.block_size} s"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "possible clipped samples" is the caller's business
        loudness_lufs = meter.integrated_loudness(pcm)
        if not np.isfinite(loudness_lufs):
            raise PromptError("the voice is silent; record someone speaking")
        levelled = pyloudnorm.normalize.loudness(pcm, loudness_lufs, lufs).astype(np.float32)
    return levelled / max(1.0, float(np.abs(levelled).max()))
