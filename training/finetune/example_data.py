"""Speaks a small data set of a trade that nano has no sentences for: the clerk of a ferry.

    python -m training.finetune.example_data --out build/ferry

The layout is that of `training.finetune.recordings`: stereo WAV, word times, manifests `train.jsonl` and
`validation.jsonl`. Some of what the clerk says follows from the trade (dogs, the stop), some from the
prompt of the conversation (who, where, when, how much). No recording of validation is in training, and
no prompt either: its combinations of hour and price are kept out. Its sentences and voices are trained on.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from personaplex.audio.files import write_stereo_wav, write_wav
from training import domain, speech, tts, users
from training.finetune.recordings import AGENT_LABEL, write_manifest

log = logging.getLogger(__name__)

USER_LABEL = "SPEAKER_OTHER"
PLACES = ("Harbor Ferry", "Island Ferry", "Pelican Ferry", "Lagoon Ferry")
HOURS = ("six", "seven", "eight", "nine", "ten", "noon")
PRICES = ("two", "three", "four", "five")
PROMPT = "You work for {place} and your name is {name}. The ferry leaves at {hour} and a ticket costs {price} dollars."
GREETING = "Hello, this is {name} from {place}. Where would you like to go?"


@dataclass(frozen=True)
class Turn:
    """A question's wordings, its answer, and the words the answer must hold."""

    kind: str
    questions: tuple[str, ...]
    answer: str
    say: str


TURNS = (
    Turn(
        "hour (prompt)",
        ("When does the ferry leave?", "What time does it leave?", "When do you leave?", "At what time is the ferry?"),
        "The ferry leaves at {hour}.",
        "{hour}",
    ),
    Turn(
        "price (prompt)",
        ("How much is a ticket?", "What does a ticket cost?", "How much do I pay?", "What is the price?"),
        "A ticket costs {price} dollars.",
        "{price} dollars",
    ),
    Turn(
        "dogs (trade)",
        ("Can I bring my dog?", "Do you take dogs?", "May my dog come along?", "I have a dog with me."),
        "Dogs travel for free.",
        "dogs travel for free",
    ),
    Turn(
        "stop (trade)",
        ("Where do you stop?", "Where do I get off?", "Where does the ferry go?", "Which stop is it?"),
        "We stop at the lighthouse.",
        "we stop at the lighthouse",
    ),
)

GREETING_WAIT_SEC, GREETING_WINDOW_SEC = (0.7, 1.2), 5.5
ANSWER_WAIT_SEC, ANSWER_WINDOW_SEC = (0.3, 0.5), 4.0
QUESTIONS_PER_TALK = 3
VOICE_PROMPTS_PER_VOICE, VOICE_PROMPT_SEC = 4, 2.0
HELD_OUT_SHARE = 4  # one in so many (hour, price) is for validation


@dataclass
class _Talk:
    """A conversation being put together, sound on two channels."""

    rng: random.Random
    agent_voice: str
    user: users.UserSpeaker
    slots: dict[str, str]
    agent: list[tuple[float, np.ndarray]] = field(default_factory=list)
    heard: list[tuple[float, np.ndarray]] = field(default_factory=list)
    alignments: list = field(default_factory=list)
    expect: list[dict] = field(default_factory=list)

    def agent_says(self, text: str, at_sec: float) -> float:
        pcm, words = tts.trimmed(speech.say_as_agent(self.rng, self.agent_voice, text.format(**self.slots)))
        return self._put(self.agent, AGENT_LABEL, pcm, words, at_sec)

    def user_says(self, text: str, at_sec: float) -> float:
        pcm, words = tts.trimmed(users.say_as_user(self.rng, self.user, text))
        return self._put(self.heard, USER_LABEL, pcm, words, at_sec)

    def expects(self, kind: str, say: str, from_sec: float, to_sec: float) -> None:
        said = say.format(**self.slots)
        self.expect.append({"kind": kind, "say": [said], "from_sec": round(from_sec, 2), "to_sec": round(to_sec, 2)})

    def _put(self, channel: list, speaker: str, pcm: np.ndarray, words: list[tuple[str, float]], at_sec: float):
        """Returns when the speech ends."""
        channel.append((at_sec, pcm))
        end_sec = at_sec + len(pcm) / tts.SAMPLE_RATE_HZ
        starts = [at_sec + start_sec for _, start_sec in words]
        ends = [*starts[1:], end_sec]
        for (text, _), start, end in zip(words, starts, ends, strict=True):
            self.alignments.append([text, [round(start, 3), round(end, 3)], speaker])
        return end_sec

    def channels(self, sec: float) -> tuple[np.ndarray, np.ndarray]:
        """Agent and user, [N] float32; the user as their microphone hears them."""
        agent, user = (self._mixed(part, sec) for part in (self.agent, self.heard))
        noise = np.random.default_rng(self.rng.getrandbits(32))
        return agent, users.through_microphone(user, self.user, noise)

    def _mixed(self, parts: list[tuple[float, np.ndarray]], sec: float) -> np.ndarray:
        mixed = np.zeros(int(sec * tts.SAMPLE_RATE_HZ), np.float32)
        for at_sec, pcm in parts:
            start = int(at_sec * tts.SAMPLE_RATE_HZ)
            count = min(len(pcm), len(mixed) - start)
            mixed[start : start + count] += pcm[:count]
        return mixed


def facts(held_out: bool) -> list[tuple[str, str]]:
    """(hour, price) of prompts, for training or kept out of it."""
    pairs = [(hour, price) for hour in HOURS for price in PRICES]
    random.Random("ferry").shuffle(pairs)
    border = len(pairs) // HELD_OUT_SHARE
    return pairs[:border] if held_out else pairs[border:]


def write_talk(rng: random.Random, folder: Path, name: str, held_out: bool) -> Path:
    """One conversation: a greeting, then questions and answers. Returns its WAV."""
    hour, price = rng.choice(facts(held_out))
    slots = {"name": rng.choice(domain.NAMES), "place": rng.choice(PLACES), "hour": hour, "price": price}
    voice = rng.choice(speech.AGENT_VOICES)
    user = rng.choice(rng.choice((tuple(tts.FLITE_VOICES), users.USER_ESPEAK_VOICES)))  # what two packages bring
    talk = _Talk(rng, voice, users.random_user(rng, user), slots)
    talk.agent_says(GREETING, rng.uniform(*GREETING_WAIT_SEC))
    at_sec = GREETING_WINDOW_SEC + rng.uniform(0, 0.5)
    talk.expects("name (prompt)", "{name}", 0.0, at_sec)
    talk.expects("place (prompt)", "{place}", 0.0, at_sec)
    for turn in rng.sample(TURNS, QUESTIONS_PER_TALK):
        ended_sec = talk.user_says(rng.choice(turn.questions), at_sec)
        talk.agent_says(turn.answer, ended_sec + rng.uniform(*ANSWER_WAIT_SEC))
        at_sec = ended_sec + ANSWER_WINDOW_SEC + rng.uniform(0, 0.5)
        talk.expects(turn.kind, turn.say, ended_sec, at_sec)
    path = folder / f"{name}.wav"
    write_stereo_wav(path, *talk.channels(at_sec), tts.SAMPLE_RATE_HZ)
    recording = f"voice-{voice}-{rng.randrange(VOICE_PROMPTS_PER_VOICE)}.wav"
    told = {
        "alignments": sorted(talk.alignments, key=lambda word: word[1]),
        "prompt": {"text": PROMPT.format(**slots), "voice": recording},
        "expect": talk.expect,
    }
    path.with_suffix(".json").write_text(json.dumps(told) + "\n", encoding="utf-8")
    return path


def write_data(out: Path, train: int, validation: int, seed: int = 0) -> None:
    """Writes the recordings, voice prompts and both manifests below ``out``."""
    for held_out, split, count in ((False, "train", train), (True, "validation", validation)):
        rng = random.Random(f"ferry-{split}-{seed}")
        folder = out / split
        folder.mkdir(parents=True, exist_ok=True)
        for voice in speech.AGENT_VOICES:
            for index in range(VOICE_PROMPTS_PER_VOICE):
                pcm = speech.voice_prompt(rng, voice)[: int(VOICE_PROMPT_SEC * tts.SAMPLE_RATE_HZ)]
                write_wav(folder / f"voice-{voice}-{index}.wav", pcm, tts.SAMPLE_RATE_HZ)
        talks = [write_talk(rng, folder, f"{index:04d}", held_out) for index in range(count)]
        write_manifest(out / f"{split}.jsonl", talks)
        log.info("%d conversations in %s", count, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/ferry"))
    parser.add_argument("--train", type=int, default=96, help="conversations")
    parser.add_argument("--validation", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_data(options.out, options.train, options.validation, options.seed)


if __name__ == "__main__":
    main()
