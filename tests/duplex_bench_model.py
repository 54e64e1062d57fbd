"""A model that needs no weights, for the tests of the behaviour bench: it answers when the user falls silent."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from personaplex.audio.files import read_recording
from personaplex.config import ModelConfig
from tests.fake_session import PADDING, WORD, FakeSession, said

FRAME_SAMPLES, RATE_HZ = 1920, 16_000
QUIET_FRAMES = 5  # 0.4 s of silence make a turn's end
VOICE = Path(__file__).parents[1] / "voices" / "nano-f.wav"
QUESTION = Path(__file__).parents[1] / "examples" / "questions" / "bank.wav"


class PoliteSession(FakeSession):
    """Waits for 0.4 s of silence after speech, then says 3 s of a recording, a word every fourth frame.

    Falls silent as soon as the user speaks. ``eager``: does not wait, and never falls silent.
    """

    def __init__(self, slots: int = 2, eager: bool = False):
        super().__init__(slots)
        self.tokenizer = SimpleNamespace(piece=lambda token: "▁yes".encode())
        self.eager = eager
        self.on_step = self._answer
        self._speech = read_recording(VOICE).pcm[: 37 * FRAME_SAMPLES].reshape(37, FRAME_SAMPLES)
        self.loaded = SimpleNamespace(config=ModelConfig())

    def prepare(self, *, voice, text):
        self.prepared.append(text)
        return "snapshot"

    def _answer(self, conversation, pcm):
        state = conversation.__dict__.setdefault("state", {"quiet": 0, "asked": False, "at": None})
        loud = bool(np.abs(pcm).max() > 0.02)
        state["quiet"] = 0 if loud else state["quiet"] + 1
        state["asked"] |= loud
        if loud and not self.eager:
            state["at"] = None
        if state["at"] is None and state["asked"] and (self.eager or state["quiet"] >= QUIET_FRAMES):
            state["at"], state["asked"] = 0, False
        if state["at"] is None or state["at"] == len(self._speech):
            state["at"] = None
            return said(np.zeros(FRAME_SAMPLES), PADDING)
        state["at"] += 1
        return said(self._speech[state["at"] - 1], WORD if state["at"] % 4 == 1 else PADDING)


def prompts(session):
    """What turns an item into a snapshot: nothing is needed here."""
    return lambda item: session.prepare(voice=None, text=item.key)


def wav(*parts: np.ndarray | float) -> np.ndarray:
    """Recordings at 16 kHz and silences in seconds, one after another."""
    return np.concatenate([np.zeros(round(p * RATE_HZ), np.float32) if isinstance(p, float) else p for p in parts])


def question() -> np.ndarray:
    """A short spoken question without silence around it, [N] float32 at 16 kHz."""
    pcm = read_recording(QUESTION, sample_rate_hz=RATE_HZ).pcm
    loud = np.flatnonzero(np.abs(pcm) > 0.02)
    return pcm[loud[0] : loud[-1] + 1]
