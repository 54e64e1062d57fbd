"""Voices of the agent, in casts of those that one model is trained with (``agents.toml``)."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from personaplex.strict import strict_dataclass
from training import kept_out, tts

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("agents.toml")
FLITE, NEURAL = "flite", "neural"
_PITCH, _TEMPO, _RANGE = (0.94, 1.06), (0.95, 1.2), (0.7, 1.4)  # drawn for each sentence; of the usual pitch
_KOKORO_TEMPO = (0.9, 1.15)
_FORMANT = (0.985, 1.015)  # of a voice whose pitch cannot be moved


@dataclass(frozen=True)
class AgentVoice:
    """``pitch_hz``: 0 where it cannot be moved. ``formant``: 1 for the synthesiser's own vocal tract."""

    synthesiser: str
    catalogue: str
    sample: str
    pitch_hz: float = 0.0
    formant: float = 1.0
    spoken: int = 1
    drawn: float = 1.0
    formerly: tuple[str, ...] = ()

    @property
    def is_slow(self) -> bool:
        """Whether a second of it costs a core about a second."""
        return self.synthesiser.startswith(tts.KOKORO_PREFIX)


def read_casts(path: Path = FILE) -> dict[str, dict[str, AgentVoice]]:
    """Cast -> name -> voice. Raises ConfigError for an unknown key, KeptOutError for a voice kept for tests."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    casts = {
        cast: {name: strict_dataclass(AgentVoice, given, f"{cast}.{name}.") for name, given in voices.items()}
        for cast, voices in data.items()
    }
    for voices in casts.values():
        for voice in voices.values():
            kept_out.refuse_voice(voice.synthesiser)
    return casts


CASTS = read_casts()
VOICES = {name: voice for voices in CASTS.values() for name, voice in voices.items()}


def say(rng: random.Random, name: str, text: str) -> tts.Utterance:
    """One reading in an agent's voice: recognisably the same speaker, never twice the same sound."""
    voice = VOICES[name]
    if voice.is_slow:
        formant = voice.formant * rng.uniform(*_FORMANT)
        return tts.speak(text, voice.synthesiser, tempo=rng.uniform(*_KOKORO_TEMPO), formant=formant)
    pitch_hz = voice.pitch_hz * rng.uniform(*_PITCH)
    return tts.speak(
        text,
        voice.synthesiser,
        tempo=rng.uniform(*_TEMPO),
        pitch_hz=pitch_hz,
        pitch_range=rng.uniform(*_RANGE),
        formant=voice.formant,
    )


def shares(names: Iterable[str]) -> dict[str, int]:
    """How often each of these is drawn for recordings."""
    return {name: VOICES[name].spoken for name in names}
