"""Cleaning of a microphone: the echo of the persona's own voice and rumble are taken out.

WebRTC's audio processing (echo canceller 3, high-pass filter) through the package pywebrtc-audio,
which is optional (``requirements-cleaning.txt``). While the persona speaks, the canceller takes words of the user away
with the echo; where it leaves enough to show that the user speaks, the microphone is heard as it is, without rumble,
and the echo beneath their words with it. One Cleaner belongs to one conversation, between its sound and its model:

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
BLOCKS_A_SEC = 100
CANCELLER_DELAY_SEC = 0.008
"""What the canceller takes longer than the high-pass filter alone."""

USER_SHARE, USER_LEVEL, USER_BLOCKS = 0.15, 4e-3, 3
"""Root mean square that the canceller leaves of a block in which the user speaks, at least: of the microphone's, and of
full scale; and how many such blocks of a ``hear`` tell that they do."""

HELD_SEC = 0.4
"""How long the user is taken to speak on, for what is soft between two words."""


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

    def __init__(self, sample_rate_hz: int = SAMPLE_RATE_HZ) -> None:
        """Raises InputError without the package."""
        check_cleaning()
        from pywebrtc_audio import AudioProcessor

        self._canceller = AudioProcessor(sample_rate=sample_rate_hz, echo_cancellation=True, high_pass_filter=True)
        self._filter = AudioProcessor(sample_rate=sample_rate_hz, high_pass_filter=True)
        self._said: np.ndarray | None = None
        self._late = np.zeros(round(CANCELLER_DELAY_SEC * sample_rate_hz), np.float32)
        self._block = sample_rate_hz // BLOCKS_A_SEC
        self._held_samples = round(HELD_SEC * sample_rate_hz)
        self._since_user = self._held_samples + 1
        self._share = 0.0  # of the microphone itself in what is handed out

    def hear(self, pcm: np.ndarray) -> np.ndarray:
        """pcm: [N] float32 of the microphone, N as in ``said`` → the same, cleaned: [N] float32."""
        far = np.zeros_like(pcm) if self._said is None else self._said
        self._said = None
        near = np.ascontiguousarray(pcm, np.float32)
        cancelled = self._canceller.process(near, np.ascontiguousarray(far, np.float32))
        filtered = np.concatenate([self._late, self._filter.process(near)])
        self._late = filtered[len(near) :]
        return self._mixed(cancelled, filtered[: len(near)])

    def said(self, pcm: np.ndarray) -> None:
        """pcm: [N] float32, what the loudspeaker plays from now on; heard back by the next ``hear`` at the earliest."""
        self._said = pcm

    def _mixed(self, cancelled: np.ndarray, filtered: np.ndarray) -> np.ndarray:
        """The microphone while the user speaks, what the canceller leaves of it otherwise; both [N] float32."""
        self._since_user = 0 if self._user_speaks(cancelled, filtered) else self._since_user + len(cancelled)
        wanted = 1.0 if self._since_user <= self._held_samples else 0.0
        share = np.full(len(cancelled), wanted, np.float32)
        ramp = min(self._block, len(share))
        share[:ramp] = np.linspace(self._share, wanted, ramp, dtype=np.float32)
        self._share = wanted
        return cancelled + share * (filtered - cancelled)

    def _user_speaks(self, cancelled: np.ndarray, filtered: np.ndarray) -> bool:
        """Whether enough is left of some blocks of these."""
        starts = np.arange(0, len(cancelled), self._block)
        left, whole = (np.sqrt(np.add.reduceat(np.square(pcm), starts) / self._block) for pcm in (cancelled, filtered))
        theirs = (left > USER_LEVEL) & (left > USER_SHARE * whole) & (left < whole)  # more than came in is an error
        return int(theirs.sum()) >= min(USER_BLOCKS, len(starts))
