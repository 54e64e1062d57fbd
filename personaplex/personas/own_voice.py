"""A visitor's own voice: checks that a recording can serve as a voice prompt."""

from __future__ import annotations

from pathlib import Path

from personaplex.audio.activity import speech_spans
from personaplex.audio.files import read_recording
from personaplex.errors import AudioError, InputError, PromptError
from personaplex.messages import Voice
from personaplex.personas.voices import MAX_VOICE_SEC, voice_from_recording

MIN_OWN_SEC = 3.0
MIN_OWN_SPEECH_SEC = 1.5
RECORDING_NAME = "your recording"


def own_voice(path: str | Path) -> Voice:
    """A recording of 3 to 60 s with speech in it → a Voice, with warnings in its notes.

    Raises AudioError or PromptError, in sentences that name "your recording" and not the file.
    """
    try:
        recording = read_recording(path, max_sec=MAX_VOICE_SEC, name=RECORDING_NAME)
        if recording.duration_sec < MIN_OWN_SEC:
            raise PromptError(
                f"{RECORDING_NAME} is {recording.duration_sec:.1f} s long; {MIN_OWN_SEC:.0f} to {MAX_VOICE_SEC:.0f} s "
                "of one person speaking are needed"
            )
        speech_sec = sum(span.duration_sec for span in speech_spans(recording.pcm, recording.sample_rate_hz))
        if speech_sec < MIN_OWN_SPEECH_SEC:
            raise PromptError(
                f"{RECORDING_NAME} is silent, or nearly: {speech_sec:.1f} s of speech in "
                f"{recording.duration_sec:.1f} s; check the microphone, speak louder and try again"
            )
        return voice_from_recording(recording, RECORDING_NAME)
    except (AudioError, PromptError) as error:
        raise type(error)(as_sentence(error)) from error


def as_sentence(error: InputError) -> str:
    """An error's message with a capital letter."""
    return str(error)[:1].upper() + str(error)[1:]
