"""Voices and recordings held out for tests, by name. Whatever gathers training material refuses them.

A person in the test set is nowhere in the training set.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

KOKORO = frozenset("af_nova af_sarah af_jessica am_adam am_onyx am_puck bf_lily bm_daniel".split())
SYNTHESISERS = ("piper", "pico")  # all of their voices: the one's origin allows no more, the other is tested only
EVERY_FIFTH = 5  # of LibriSpeech's sorted readers of train-clean-100
ARCTIC_SEC = 12 * 60.0  # the last of the reader's recordings, by name
_CAFE_LIST = Path(__file__).parent / "kept_out_cafe.txt"


class KeptOutError(ValueError):
    """Training material that is held out for tests was asked for."""


def refuse_voice(voice: str) -> None:
    """Raises KeptOutError for a voice of `training.tts` that is kept for tests, or a mixture with one in it."""
    kind, _, name = voice.partition(":")
    if kind in SYNTHESISERS:
        raise KeptOutError(f"{voice}: {kind} is kept for tests")
    if kind == "kokoro":
        for part in name.split(","):
            if (style := part.partition("=")[0]) in KOKORO:
                raise KeptOutError(f"{voice}: {style} is kept for tests, in mixtures, too")


@cache
def cafe_recordings() -> frozenset[str]:
    """Names of the café's recordings whose speakers are kept: every fifth cluster by speaker embeddings."""
    return frozenset(_CAFE_LIST.read_text().split())
