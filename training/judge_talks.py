"""Conversations in which a language model is judged: people, neural voices and noises that it never trained on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from training import domain, kept_out, orders, people, sentences, speech, surroundings, tts
from training.domain import Role
from training.evaluate import FRAME_SEC, Talk, Window
from training.tts import SAMPLE_RATE_HZ

LEVEL = 0.08  # of users' speech, root mean square of what sounds
LEAD_SEC, ANSWER_SEC, ORDER_ANSWER_SEC, GREETING_SEC = 0.4, 5.0, 7.0, 9.0
CAFE_PROMPT = "You work for {place} which is a coffee shop and your name is {name}."
PAUSE_SEC = (0.8, 1.5)  # put into the orders that are judged for being talked over
_PAUSE_WITHIN = (0.3, 0.8)  # of an order
_HOP_SEC, _FLOOR = 0.01, 0.002
QUESTIONS = (
    ("name", "What is your name?"),
    ("name", "Who am I speaking to?"),
    ("place", "Where do you work?"),
    ("place", "Which company is this?"),
    ("hours", "When do you close?"),
    ("bye", "Goodbye."),
)
ASKED_AGAIN = {"price": "How much is {good}?", "hours": "When do you close?"}
TOLD_SEC = 7.5  # after the greeting
READ_SETS = ("librispeech", "arctic")
READ_SEC = (2.0, 10.0)
RUMBLES = (0.03, 0.08)  # root mean square
NOISE_SNR_DB = 10.0
BACKGROUNDS = (
    "quiet",
    *(f"rumble {level}" for level in RUMBLES),
    *(f"{kind} 10 dB" for kind in ("fan", "street", "cafe")),
)


class Maker:
    """Makes the conversations. `voices`: name -> [T] float32, the recordings that prompt the agent's voice."""

    def __init__(self, voices: dict[str, np.ndarray], seed: int, people_folder: Path | None, cache: Path) -> None:
        self.rng, self.voices, self.people, self.cache = random.Random(f"judge-{seed}"), voices, people_folder, cache
        self._personas, self._count = domain.held_out_personas(), 0

    def _talk(self, role: Role, prompt: str, heard: np.ndarray, *windows: Window) -> Talk:
        name = list(self.voices)[self._count % len(self.voices)]
        self._count += 1
        return Talk(role, prompt, name, self.voices[name], heard.astype(np.float32), list(windows))

    def _role(self) -> Role:
        name, place = self._personas[self._count % len(self._personas)]
        return Role(name, place, hour=self.rng.choice(domain.HOURS))

    def asked(self, pcm: np.ndarray, kind: str, text: str, voice: str, answer_sec: float = ANSWER_SEC) -> Talk:
        """A user who speaks at once, then silence. The window begins where the user ends."""
        role = self._role()
        return self._after(pcm, role, domain.role_prompt(role), kind, text, voice, answer_sec)

    def _after(
        self, pcm: np.ndarray, role: Role, prompt: str, kind: str, text: str, voice: str, answer_sec: float,
        lead_sec: float = LEAD_SEC,
    ) -> Talk:  # fmt: skip
        lead = np.zeros(int(lead_sec * SAMPLE_RATE_HZ), np.float32)
        heard = np.concatenate([lead, levelled(pcm), np.zeros(int(answer_sec * SAMPLE_RATE_HZ), np.float32)])
        ended = round((len(lead) + len(pcm)) / SAMPLE_RATE_HZ / FRAME_SEC)
        return self._talk(
            role, prompt, heard, Window(kind, ended, int(len(heard) / SAMPLE_RATE_HZ / FRAME_SEC), text, voice)
        )

    def kokoro_questions(self, names: Sequence[str]) -> list[Talk]:
        """The six questions by each of these voices of Kokoro's; spoken once, kept in the cache."""
        said = [(kind, text, tts.KOKORO_PREFIX + name) for name in names for kind, text in QUESTIONS]
        return [self.asked(self._spoken(text, voice), kind, text, voice) for kind, text, voice in said]

    def _spoken(self, text: str, voice: str) -> np.ndarray:
        name = f"{voice.replace(':', '-')}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.wav"
        path = self.cache / name
        if not path.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            pcm, _ = tts.trimmed(tts.speak(text, voice))
            soundfile.write(path, pcm, SAMPLE_RATE_HZ)
        return soundfile.read(path, dtype="float32")[0]

    def _kept(self, sets: Sequence[str]) -> list[people.Recording]:
        found = people.recordings(self.people, kept=True, sets=sets) if self.people else []
        return random.Random("kept").sample(found, len(found))

    def orders(self, count: int, paused: bool = False, as_recorded: bool = False) -> list[Talk]:
        """Orders by people kept for tests; `paused`: with a pause at the quietest place in their middle.

        `as_recorded`: with the seconds of silence before the order, in which the agent may begin to greet. A second
        window is then the time in which the order is spoken.
        """
        labels = people.cafe_slots(self.people / "cafe") if self.people else {}
        talks: list[Talk] = []
        for recording in self._kept(("cafe",))[:count]:
            name, _ = self._personas[len(talks) % len(self._personas)]
            role = Role(name, domain.CAFES[0])
            whole = recording.pcm()
            pcm = tight(whole)
            pcm = with_pause(pcm, self.rng)[0] if paused else pcm
            slots = orders.of_label(labels[recording.path.name])
            prompt = CAFE_PROMPT.format(place=role.place, name=role.name)
            text = orders.repeated(slots)
            talks.append(self._after(pcm, role, prompt, orders.ORDER, text, recording.path.name, ORDER_ANSWER_SEC))
            if as_recorded:
                self._let_begin_late(talks[-1], whole)
        return talks

    @staticmethod
    def _let_begin_late(talk: Talk, whole: np.ndarray) -> None:
        """Puts the recording's own beginning before the order."""
        loud = np.flatnonzero(np.abs(whole) > people.TRIM_LEVEL * np.abs(whole).max())
        late = max(0, round(loud[0] / SAMPLE_RATE_HZ / FRAME_SEC) - 1)
        talk.heard = np.concatenate([np.zeros(round(late * FRAME_SEC * SAMPLE_RATE_HZ), np.float32), talk.heard])
        window = talk.windows[0]
        began = late + round(LEAD_SEC / FRAME_SEC)
        window.start_frame, window.end_frame = window.start_frame + late, window.end_frame + late
        talk.windows.append(Window("spoken", began, window.start_frame))

    def readings(self, count: int) -> list[Talk]:
        """Sentences read by people kept for tests, as many of each set."""
        talks: list[Talk] = []
        for name in READ_SETS:
            found = (recording for recording in self._kept((name,)))
            own = 0
            for recording in found:
                pcm = tight(recording.pcm())
                if READ_SEC[0] <= len(pcm) / SAMPLE_RATE_HZ <= READ_SEC[1] and own < -(-count // len(READ_SETS)):
                    talks.append(self.asked(pcm, "reading", recording.text or "", recording.path.name))
                    own += 1
        return talks[:count]

    def told(self, count: int) -> list[Talk]:
        """Users whom the agent may greet, then a price or an hour is told, another than the prompt's, and asked for.

        The role of a talk has the told value, its `role_before` the prompt's.
        """
        voices = sorted(kept_out.KOKORO)
        talks: list[Talk] = []
        for number in range(count):
            name, place = self._personas[self._count % len(self._personas)]
            role = domain.with_facts(self.rng, name, place)
            new, text = domain.changed(self.rng, role)
            kind = "price" if new.price != role.price else "hours"
            question = ASKED_AGAIN[kind].format(good=role.good)
            voice = tts.KOKORO_PREFIX + voices[number % len(voices)]
            pcm, prompt = self._spoken(question, voice), domain.role_prompt(role)
            talk = self._after(pcm, new, prompt, kind, question, voice, ANSWER_SEC, lead_sec=GREETING_SEC)
            talk.told[int(TOLD_SEC / FRAME_SEC)], talk.role_before = text, role
            talks.append(talk)
        return talks

    def greetings(self, background: str, count: int) -> list[Talk]:
        """A silent user with a noise around them, whom the agent should greet."""
        length = int(GREETING_SEC / FRAME_SEC) * int(FRAME_SEC * SAMPLE_RATE_HZ)
        talks: list[Talk] = []
        babbles = [surroundings.babble(self.rng)] if background.startswith("cafe") else []
        for _ in range(count):
            role, draw = self._role(), np.random.default_rng(self.rng.getrandbits(32))
            kind, _, amount = background.partition(" ")
            level = 0.0 if kind == "quiet" else LEVEL * 10 ** (-NOISE_SNR_DB / 20) if "dB" in amount else float(amount)
            noise = surroundings.noise(kind, length, draw, babbles) * level if level else np.zeros(length)
            window = Window(sentences.GREET, 0, int(length / SAMPLE_RATE_HZ / FRAME_SEC), background)
            talks.append(self._talk(role, domain.role_prompt(role), noise.clip(-1.0, 1.0), window))
        return talks


def tight(pcm: np.ndarray) -> np.ndarray:
    """[T] float32 without what is before and after the speech, but a tenth of a second."""
    trimmed = people.trimmed(pcm)
    return trimmed[: len(trimmed) - int(0.1 * SAMPLE_RATE_HZ)]


def levelled(pcm: np.ndarray) -> np.ndarray:
    """[T] float32 at LEVEL."""
    return (pcm * LEVEL / max(1e-4, people.sounding_level(pcm))).clip(-1.0, 1.0).astype(np.float32)


def with_pause(pcm: np.ndarray, rng: random.Random) -> tuple[np.ndarray, float, float]:
    """With a pause at the quietest place in its middle: [T] float32, and the pause's start and end in seconds."""
    hop = int(_HOP_SEC * SAMPLE_RATE_HZ)
    power = np.square(pcm[: len(pcm) // hop * hop]).reshape(-1, hop).mean(1)
    smooth = np.convolve(power, np.ones(8) / 8, "same")
    first, last = (int(share * len(smooth)) for share in _PAUSE_WITHIN)
    at = (first + int(smooth[first:last].argmin())) * hop
    floor = np.sqrt(np.percentile(power, 3))
    draw = np.random.default_rng(rng.getrandbits(32))
    silence = draw.standard_normal(int(rng.uniform(*PAUSE_SEC) * SAMPLE_RATE_HZ)) * min(floor, _FLOOR)
    paused = np.concatenate([pcm[:at], silence, pcm[at:]]).astype(np.float32)
    return paused, at / SAMPLE_RATE_HZ, (at + len(silence)) / SAMPLE_RATE_HZ


def voice_prompts(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Name -> its recording in a folder as `training.examples` writes it, at a voice prompt's loudness."""
    return {name: speech.at_loudness(soundfile.read(folder / f"{name}.wav", dtype="float32")[0]) for name in names}
