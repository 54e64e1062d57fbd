"""Formats of uncompressed sound on a wire ↔ float32 at 24 kHz, in streams."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from personaplex.audio import g711
from personaplex.audio.frames import SAMPLE_RATE_HZ, from_int16, to_int16
from personaplex.audio.rate import Decimator, Interpolator

_PHONE_FACTOR = SAMPLE_RATE_HZ // g711.PHONE_RATE_HZ


@dataclass(frozen=True)
class Format:
    """int16 at 24 kHz, or one of the telephone's laws at 8 kHz."""

    name: str
    law: str = ""  # "" for int16

    @property
    def rate_hz(self) -> int:
        return g711.PHONE_RATE_HZ if self.law else SAMPLE_RATE_HZ


PCM, PCMU, PCMA = Format("audio/pcm"), Format("audio/pcmu", "mu"), Format("audio/pcma", "a")
FORMATS = {form.name: form for form in (PCM, PCMU, PCMA)}


class Ear:
    """Bytes of a stream → sound."""

    def __init__(self, form: Format) -> None:
        self.form = form
        self._rest = b""
        self._to_our_rate = Interpolator(_PHONE_FACTOR)

    def decode(self, data: bytes) -> np.ndarray:
        """Any bytes → [n] float32 at 24 kHz; half a sample waits for its other half."""
        if self.form.law:
            return self._to_our_rate.push(g711.decode(data, self.form.law))
        data = self._rest + data
        whole = len(data) // 2 * 2
        self._rest = data[whole:]
        return from_int16(np.frombuffer(data[:whole], "<i2"))


class Mouth:
    """Sound → bytes of a stream."""

    def __init__(self, form: Format) -> None:
        self.form = form
        self._to_their_rate = Decimator(_PHONE_FACTOR)

    def encode(self, pcm: np.ndarray) -> bytes:
        """pcm: [n] float32 at 24 kHz."""
        if self.form.law:
            return g711.encode(self._to_their_rate.push(pcm), self.form.law)
        return to_int16(pcm).astype("<i2").tobytes()
