"""Speaks what the repository ships as sound: example questions and the voices of the embedded model.

python -m training.examples --questions examples/questions --voices voices
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import soundfile

from training import speech, tts

# Persona -> what is asked, and the voice that asks.
QUESTIONS = {
    "teacher": ("What is your name?", "awb"),
    "bank": ("Who do you work for?", "rms"),
    "medical": ("When do you close today?", "slt"),
    "restaurant": ("How long are you open in the evening?", "awb"),
    "waste": ("Can you tell me your name?", "slt"),
    "drone": ("What company do you work for?", "kal16"),
    "astronaut": ("Where do you work?", "espeak:en-us+f3"),
    "casual": ("How are you today?", "espeak:en-us+m3"),
}

# Names of the shipped voices, the synthesiser's voice behind each, and what it says.
VOICES = {
    "nano-f": ("slt", "The old captain walked slowly across the bridge near the station. Every visitor remembered it."),
    "nano-m": ("rms", "My sister wrote a letter about the sound of distant bells. The quiet painter returned to it."),
    "nano-scot": ("awb", "Our neighbor took a picture of the castle on the hill. A young farmer returned to it."),
    "nano-old": ("kal16", "The tall engineer was looking for a small wooden boat. Her cousin never forgot it."),
}
VOICE_SEC = 3.6
TAIL_SEC = 0.2


def question(text: str, voice: str) -> np.ndarray:
    pcm, _ = tts.trimmed(tts.speak(text, voice))
    pcm = speech.at_loudness(pcm)
    return np.concatenate([pcm, np.zeros(int(TAIL_SEC * tts.SAMPLE_RATE_HZ), np.float32)])


def write_questions(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for persona, (text, voice) in QUESTIONS.items():
        soundfile.write(folder / f"{persona}.wav", question(text, voice), tts.SAMPLE_RATE_HZ, subtype="PCM_16")


def write_voices(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (voice, text) in VOICES.items():
        pcm = speech.say_as_agent(random.Random(name), voice, text).pcm[: int(VOICE_SEC * tts.SAMPLE_RATE_HZ)]
        soundfile.write(folder / f"{name}.wav", speech.at_loudness(pcm), tts.SAMPLE_RATE_HZ, subtype="PCM_16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, default=Path("examples/questions"))
    parser.add_argument("--voices", type=Path, default=Path("voices"))
    options = parser.parse_args()
    write_questions(options.questions)
    write_voices(options.voices)


if __name__ == "__main__":
    main()
