"""Who speaks in a synthetic set: users that the language model has not heard, and the agent's voice prompts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import soxr

from benchmarks.duplex import texts
from benchmarks.duplex.speech_activity import SAMPLE_RATE_HZ
from personaplex.audio.frames import SAMPLE_RATE_HZ as MODEL_RATE_HZ
from personaplex.audio.loudness import normalize_loudness
from personaplex.text.transcript import Word
from training import agents, tts, users

Speak = Callable[..., tts.Utterance]
"""``training.tts.speak``, or what stands for it in a test."""

VOICE_PROMPT_SEC = 3.5
_MARGIN_BEFORE_SEC, _MARGIN_AFTER_SEC = 0.04, 0.08


@dataclass(frozen=True)
class Spoken:
    """A sentence without the synthesiser's silence around it."""

    pcm: np.ndarray  # [N] float32 at 16 kHz
    words: tuple[Word, ...]  # from its own start

    @property
    def duration_sec(self) -> float:
        return len(self.pcm) / SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Speaker:
    """One user, the same throughout an item."""

    voice: str
    tempo: float
    formant: float
    speak: Speak = field(default=tts.speak, compare=False)

    def say(self, text: str) -> Spoken:
        said = self.speak(text, self.voice, tempo=self.tempo, formant=self.formant)
        first_sec = max(0.0, said.words[0].start_sec - _MARGIN_BEFORE_SEC)
        last_sec = min(len(said.pcm) / said.sample_rate, said.words[-1].end_sec + _MARGIN_AFTER_SEC)
        pcm = said.pcm[int(first_sec * said.sample_rate) : int(last_sec * said.sample_rate)]
        pcm = soxr.resample(pcm, said.sample_rate, SAMPLE_RATE_HZ).astype(np.float32)
        limit_sec = len(pcm) / SAMPLE_RATE_HZ
        words = [
            Word(w.text, round(w.start_sec - first_sec, 3), round(min(w.end_sec - first_sec, limit_sec), 3))
            for w in said.words
        ]
        return Spoken(pcm, tuple(words))


def random_speaker(rng: random.Random, speak: Speak = tts.speak) -> Speaker:
    """A held-out voice at a tempo and with a vocal tract of its own."""
    return Speaker(rng.choice(users.HELD_OUT_USER_VOICES), rng.uniform(0.9, 1.1), rng.uniform(0.94, 1.06), speak)


def voice_prompt(rng: random.Random, voice: str, speak: Speak = tts.speak) -> np.ndarray:
    """A recording of an agent's voice (``training.agents``) that no other item has: [N] float32 at the model's rate."""
    agent, tempo = agents.VOICES[voice], rng.uniform(0.95, 1.15)
    moved = {} if agent.formant == 1.0 else {"pitch_hz": agent.pitch_hz, "formant": agent.formant}
    said = [speak(text, agent.synthesiser, tempo=tempo, **moved) for text in rng.sample(texts.ASIDES, 2)]
    pcm = np.concatenate([utterance.pcm for utterance in said])
    pcm = soxr.resample(pcm, said[0].sample_rate, MODEL_RATE_HZ).astype(np.float32)
    return normalize_loudness(pcm[: int(VOICE_PROMPT_SEC * MODEL_RATE_HZ)])
