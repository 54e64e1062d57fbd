"""Cleaning of a microphone: the echo of the persona's own voice, rumble and, where asked for, noise are taken out.

WebRTC's audio processing (echo canceller 3, high-pass filter, noise suppression) through the package pywebrtc-audio,
which is optional (``requirements-cleaning.txt``). One Cleaner belongs to one conversation, between its sound and its
model:

    cleaner = Cleaner()
    for microphone in frames:
        output = conversation.step(cleaner.hear(microphone))
        cleaner.said(output.pcm)
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from personaplex.audio.frames import SAMPLE_RATE_HZ
from personaplex.errors import InputError

PACKAGE = "pywebrtc_audio"
HOW_TO_GET = "pip install -r requirements-cleaning.txt"
NOISE_LEVEL = 1
"""Of pywebrtc-audio's 0 to 3: 12 dB less noise."""


def can_clean() -> bool:
    """Whether the optional package is installed."""
    return find_spec(PACKAGE) is not None


def check_cleaning() -> None:
    """Raise InputError where the optional package is not installed."""
    if not can_clean():
        raise InputError(f"a microphone cannot be cleaned here: {HOW_TO_GET}")


class Cleaner:
    """The echo canceller of one conversation. Its methods take turns, on one thread.

    The far end is exact: it is what the model said in the frame before. An echo comes back at least one frame later,
    and is found up to 0.5 s beyond that.
    """

    def __init__(self, sample_rate_hz: int = SAMPLE_RATE_HZ, *, suppress_noise: bool = False) -> None:
        """``suppress_noise`` costs 6 ms of delay beside the canceller's 9. Raises InputError without the package."""
        check_cleaning()
        from pywebrtc_audio import AudioProcessor

        self._processor = AudioProcessor(
            sample_rate=sample_rate_hz,
            echo_cancellation=True,
            high_pass_filter=True,
            noise_suppression=suppress_noise,
            ns_level=NOISE_LEVEL,
        )
        self._said: np.ndarray | None = None

    def hear(self, pcm: np.ndarray) -> np.ndarray:
        """pcm: [N] float32 of the microphone, N as in ``said`` → the same, cleaned: [N] float32."""
        far = np.zeros_like(pcm) if self._said is None else self._said
        self._said = None
        near = np.ascontiguousarray(pcm, np.float32)
        return self._processor.process(near, np.ascontiguousarray(far, np.float32))

    def said(self, pcm: np.ndarray) -> None:
        """pcm: [N] float32, what the loudspeaker plays from now on; heard back by the next ``hear`` at the earliest."""
        self._said = pcm
