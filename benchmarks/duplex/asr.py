"""Words with times recognised by pocketsphinx: what was understandable, beside the text stream's what was meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import pocketsphinx

from benchmarks.duplex.metrics import Span, merge
from benchmarks.duplex.roles import UNSEEN_NAMES, UNSEEN_PLACES
from benchmarks.duplex.speech_activity import SAMPLE_RATE_HZ
from personaplex.errors import InputError
from personaplex.text.transcript import Word
from training import listen

NAMES = ("pocketsphinx", "nano")
JOIN_SEC, MARGIN_SEC = 0.5, 0.15
_FRAME_SEC = 0.01
Hear = Callable[[pocketsphinx.Decoder, np.ndarray], bool]
Kept = Callable[[list[str]], int]
_VARIANT = re.compile(r"\(\d+\)$")  # "to(3)": the third pronunciation


class Recogniser:
    """pocketsphinx on the stretches that hold speech."""

    def __init__(
        self,
        decoder: pocketsphinx.Decoder | None = None,
        name: str = "pocketsphinx",
        kept: Kept = len,
        hear: Hear = listen.hear,
    ) -> None:
        """``decoder``: for 16 kHz; with the package's own English language model if not given.

        ``hear``: decodes [N] float32, and tells whether there was anything.
        ``kept``: how many of the words heard in one stretch, from the first on, are to be believed.
        """
        self.name, self._kept, self._hear = name, kept, hear
        self._decoder = decoder or pocketsphinx.Decoder(samprate=SAMPLE_RATE_HZ, loglevel="FATAL")

    def words(self, pcm: np.ndarray, speech: Sequence[Span]) -> list[Word]:
        """pcm: [N] float32 at 16 kHz and where it holds speech, in seconds → what was said there."""
        found = []
        for start_sec, end_sec in merge(speech, JOIN_SEC):
            first = max(0, int((start_sec - MARGIN_SEC) * SAMPLE_RATE_HZ))
            last = int((end_sec + MARGIN_SEC) * SAMPLE_RATE_HZ)
            found += self._decode(pcm[first:last], first / SAMPLE_RATE_HZ)
        return found

    def _decode(self, pcm: np.ndarray, offset_sec: float) -> list[Word]:
        if not self._hear(self._decoder, pcm):
            return []
        heard = [
            Word(
                _VARIANT.sub("", part.word),
                round(offset_sec + part.start_frame * _FRAME_SEC, 3),
                round(offset_sec + (part.end_frame + 1) * _FRAME_SEC, 3),
            )
            for part in self._decoder.seg()
            if part.word[0] not in "<[("
        ]
        return heard[: self._kept([word.text for word in heard])]


def recogniser(name: str) -> Recogniser:
    """``pocketsphinx``: its own English; ``nano``: a grammar of all that nano might say here.

    Raises InputError for another name.
    """
    if name not in NAMES:
        raise InputError(f"{name!r} is not a recogniser; allowed: {', '.join(NAMES)}")
    if name != "nano":
        return Recogniser()
    grammar = listen.Grammar(UNSEEN_NAMES, UNSEEN_PLACES)

    def kept(words: list[str]) -> int:
        return len(grammar.without_stray_word(words))

    return Recogniser(grammar.decoder(), f"{name} 2", kept, listen.hear_sentences)  # 1 was deaf to broken sentences
