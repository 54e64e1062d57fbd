"""Moonshine tiny, which writes while the user speaks."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from personaplex.audio.activity import QUIET_DB
from personaplex.words.recogniser import RATE_HZ, Utterance, spread

UPDATE_SEC = 0.4
"""Sound between two looks at what was said; a busy machine looks less often."""
NEVER_SEC, FORCE = 1e9, 1
LONG_SEC, SILENT_SEC = 60.0, 2.0
_OPTIONS = {"identify_speakers": "false", "transcription_interval": str(UPDATE_SEC)}


class Moonshine:
    """The model that lies inside the package moonshine-voice."""

    def __init__(self) -> None:
        # Not from the package itself, which would ask for a sound card.
        from moonshine_voice.moonshine_api import ModelArch
        from moonshine_voice.transcriber import Transcriber

        class Lean(Transcriber):
            """Leaves the lines' sound, which nobody here wants, where it is: it is handed over with every look."""

            def __del__(self) -> None:
                """Not freed: a process has one for as long as it runs, and the library (0.0.48) crashes at it."""

            def _parse_transcript(self, found: Any) -> Sequence[Line]:
                return _lines(found.contents) if found else []

        package = find_spec("moonshine_voice")
        assert package is not None and package.origin is not None, "it was imported a line above"
        folder = Path(package.origin).parent / "assets" / "tiny-en"
        self._transcriber = Lean(str(folder), ModelArch.TINY, options=_OPTIONS)

    def listen(self) -> MoonshineEar:
        return MoonshineEar(self._transcriber)

    def words(self, pcm: np.ndarray) -> str:
        return " ".join(line.text for line in self._transcriber.transcribe_without_streaming(pcm.tolist(), RATE_HZ))


@dataclass(frozen=True)
class Line:
    """A stretch of speech as Moonshine has it."""

    text: str
    start_sec: float  # in the stream
    end_sec: float
    is_complete: bool


def _lines(transcript: Any) -> list[Line]:
    """The lines of a ``TranscriptC``."""
    found = []
    for at in range(transcript.line_count):
        line = transcript.lines[at]
        text = ctypes.string_at(line.text).decode("utf-8", errors="ignore") if line.text else ""
        start_sec = float(line.start_time)
        found.append(Line(text.strip(), start_sec, start_sec + float(line.duration), bool(line.is_complete)))
    return found


class MoonshineEar:
    """One conversation's stream of lines.

    The stream keeps all of its sound, so it is begun anew when it has become long and the user is silent.
    """

    def __init__(self, transcriber: Any) -> None:
        self._transcriber = transcriber
        self._stream: Any = None
        self._heard_samples = self._begun_at_sample = self._looked_at_sample = self._loud_at_sample = 0
        self._number = 0  # of the stream's first line
        self._told: dict[int, Utterance] = {}

    def hear(self, pcm: np.ndarray) -> None:
        if self._stream is None:
            # Its notifications want the package's own lines; ours are the return values.
            self._stream = self._transcriber.create_stream(update_interval=NEVER_SEC)
            self._stream._notify_from_transcript = lambda lines: None
            self._stream.start()
            self._begun_at_sample = self._heard_samples
        self._stream.add_audio(pcm.tolist(), RATE_HZ)
        self._heard_samples += len(pcm)
        if len(pcm) and float(np.sqrt(np.mean(np.square(pcm)))) > 10 ** (QUIET_DB / 20):
            self._loud_at_sample = self._heard_samples

    def news(self) -> Sequence[Utterance]:
        if self._stream is None or self._heard_samples - self._looked_at_sample < UPDATE_SEC * RATE_HZ:
            return []
        self._looked_at_sample = self._heard_samples
        lines = self._stream.update_transcription()
        changed = self._changed(lines, is_over=False)
        is_long = self._heard_samples - self._begun_at_sample > LONG_SEC * RATE_HZ
        is_silent = self._heard_samples - self._loud_at_sample > SILENT_SEC * RATE_HZ
        if is_long and is_silent and all(line.is_complete for line in lines):
            self._close(len(lines))
        return changed

    def finish(self) -> Sequence[Utterance]:
        if self._stream is None:
            return []
        lines = self._stream.update_transcription(FORCE)  # ``stop`` forgets sound that was never looked at
        lines = self._stream.stop() or lines
        changed = self._changed(lines, is_over=True)
        self._close(len(lines))
        return changed

    def _changed(self, lines: Sequence[Line], is_over: bool) -> list[Utterance]:
        begun_sec, changed = self._begun_at_sample / RATE_HZ, []
        for at, line in enumerate(lines):
            words = spread(line.text, begun_sec + line.start_sec, begun_sec + line.end_sec)
            utterance = Utterance(self._number + at, words, line.is_complete or is_over)
            before = self._told.get(utterance.number)
            if before != utterance and (words or before is not None):
                self._told[utterance.number] = utterance
                changed.append(utterance)
        return changed

    def _close(self, lines: int) -> None:
        self._stream.close()
        self._stream = None
        self._number += lines
        self._told.clear()
