"""Speaks what the repository ships as sound: example questions and the voices of the embedded model.

python -m training.examples --questions examples/questions --voices voices
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import soundfile

from training import agents, speech, tts

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


def voices(cast: str = agents.FLITE) -> dict[str, str]:
    """Names of the shipped voices -> those of the agent's voices behind them."""
    return {voice.catalogue: name for name, voice in agents.CASTS[cast].items()}


def write_voices(folder: Path, cast: str = agents.FLITE) -> None:
    """A recording of each voice of a cast, under its name in the catalogue."""
    folder.mkdir(parents=True, exist_ok=True)
    for catalogue, name in voices(cast).items():
        pcm = agents.say(random.Random(catalogue), name, agents.VOICES[name].sample).pcm
        pcm = speech.at_loudness(pcm[: int(VOICE_SEC * tts.SAMPLE_RATE_HZ)])
        soundfile.write(folder / f"{catalogue}.wav", pcm, tts.SAMPLE_RATE_HZ, subtype="PCM_16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, default=Path("examples/questions"))
    parser.add_argument("--voices", type=Path, default=Path("voices"))
    parser.add_argument("--cast", choices=sorted(agents.CASTS), default=agents.FLITE, help="the agent's voices")
    options = parser.parse_args()
    write_questions(options.questions)
    write_voices(options.voices, options.cast)


if __name__ == "__main__":
    main()
