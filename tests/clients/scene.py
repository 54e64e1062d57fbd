"""What the clients' scripts share: the question, its pace, and the one line each of them prints."""

from __future__ import annotations

import json
import sys
import time
import wave
from collections.abc import Iterator
from pathlib import Path

ROLE = "You work for First Neuron Bank and your name is Sanni."
QUESTION = Path(__file__).parents[2] / "examples" / "questions" / "bank.wav"
RATE_HZ = 24_000
BYTES_A_SEC = 2 * RATE_HZ


def question(silence_sec: float = 0.0) -> bytes:
    """The recorded question as int16 at 24 kHz, and silence after it."""
    with wave.open(str(QUESTION)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE_HZ, 1, 2)
        return file.readframes(file.getnframes()) + bytes(int(silence_sec * RATE_HZ) * 2)


def pieces(sound: bytes, piece_sec: float) -> Iterator[tuple[bytes, float]]:
    """(piece, seconds to wait before it) at the pace of a microphone."""
    size = int(piece_sec * RATE_HZ) * 2
    began = time.monotonic()
    for number, at in enumerate(range(0, len(sound) - size + 1, size)):
        yield sound[at : at + size], max(0.0, began + number * piece_sec - time.monotonic())


def report(**seen: object) -> None:
    """Print what was seen."""
    print(json.dumps(seen, ensure_ascii=False))
    sys.stdout.flush()


def is_sanni(text: str) -> bool:
    """Whether the persona said who it is."""
    return "Sanni" in text and "First Neuron Bank" in text
