"""The domain's recordings: agent clips, user sessions and voice prompts, as fixed-length streams.

    python -m training.speech --out build/nano/speech --hours 20 --processes 2

A shard is `ROLE_NNNN.npy`, int16 [streams, samples] at 24 kHz, with `ROLE_NNNN.json` saying what is
where. Shards are independent and seeded by their number, so the command can be stopped and resumed,
and any number of them is a balanced sample. Hardly any recording is meant to be used twice: tempo,
pitch and liveliness are drawn anew for each one.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pyloudnorm

from training import domain, sentences, tts, users

log = logging.getLogger(__name__)

SAMPLE_RATE_HZ = tts.SAMPLE_RATE_HZ
STREAM_SEC = {"agent": 24.0, "user": 20.0, "voice": 4.0}
STREAMS_PER_SHARD = {"agent": 16, "user": 20, "voice": 96}
SHARD_PATTERN = ("agent", "user", "agent", "user", "agent", "user", "agent", "voice", "agent", "user")
VOICE_LUFS = -24.0

AGENT_LUFS = (-21.5, -18.5)
AGENT_VOICE_WEIGHTS = dict(slt=3, rms=2, awb=3, kal16=3)
AGENT_VOICES = tuple(AGENT_VOICE_WEIGHTS)
AGENT_KIND_WEIGHTS = dict(
    greet=20, name=12, place=10, price=14, hours=6, robot=2, help=3, rude=2, beyond=3, unknown=3, how=2, thanks=2,
    bye=2, nod=4, repeat=3,
)  # fmt: skip
SPELLED_SHARE = 0.2  # of the agents' streams say nothing but spelled names
USER_KIND_WEIGHTS = dict(
    name=12, place=10, price=9, hours=8, hello=2, how=5, thanks=3, bye=3, robot=4, help=4, rude=5, beyond=11, mumble=6
)
STORY_SHARE = 0.25  # of the users tell a story before they ask
STORY_SENTENCES = (3, 5)
FILLER_SHARE = 0.3  # of the questions begin with a filler
LED_IN_SHARE = 0.3  # of the questions have a beginning of their own, with or without a pause after it

HESITATION_SHARE = 0.35  # of the user's sentences of at least so many words
HESITATION_WORDS = 4
SECOND_TALKER_SHARE = 0.25  # of the users have somebody speaking behind them
SECOND_TALKER_DB = (-22.0, -8.0)


@dataclass
class Clip:
    """One sentence inside a stream; times in seconds from the start of the stream."""

    kind: str
    text: str
    start_sec: float
    end_sec: float
    words: list[tuple[str, float]]
    slots: dict[str, str] = field(default_factory=dict)  # what fills them, of the agent's sentences


@dataclass
class Stream:
    """One row of a shard. `end_sec`: from here to the end there is silence or background noise."""

    voice: str
    clips: list[Clip] = field(default_factory=list)
    end_sec: float = 0.0


def say_as_agent(rng: random.Random, voice: str, text: str) -> tts.Utterance:
    """One reading in an agent voice: recognisably the same speaker, never twice the same sound."""
    pitch_hz = tts.FLITE_VOICES[voice] * rng.uniform(0.94, 1.06)
    return tts.speak(text, voice, tempo=rng.uniform(0.95, 1.2), pitch_hz=pitch_hz, pitch_range=rng.uniform(0.7, 1.4))


class _Row:
    """A stream being filled with sentences."""

    def __init__(self, role: str, voice: str) -> None:
        self.pcm = np.zeros(int(STREAM_SEC[role] * SAMPLE_RATE_HZ), np.float32)
        self.stream = Stream(voice)
        self.at_sec = 0.0

    def add(self, utterance: tts.Utterance, tail_sec: float, **clip) -> bool:
        """Puts the sentence at `at_sec`; False (and nothing done) if it does not fit."""
        pcm, words = tts.trimmed(utterance)
        start = int(self.at_sec * SAMPLE_RATE_HZ)
        if start + len(pcm) + int(tail_sec * SAMPLE_RATE_HZ) > len(self.pcm):
            return False
        self.pcm[start : start + len(pcm)] = pcm
        start_sec, end_sec = start / SAMPLE_RATE_HZ, (start + len(pcm)) / SAMPLE_RATE_HZ
        placed = [(text, start_sec + word_sec) for text, word_sec in words]
        self.stream.clips.append(Clip(start_sec=start_sec, end_sec=end_sec, words=placed, **clip))
        self.at_sec = self.stream.end_sec = end_sec
        return True


Item = TypeVar("Item")


class _Cycle(Generic[Item]):
    """Draws without replacement and starts over when all are drawn, so that counts stay even."""

    def __init__(self, rng: random.Random, items: Iterable[Item]) -> None:
        self._rng, self._items = rng, list(items)
        self._left: list[Item] = []

    def draw(self) -> Item:
        if not self._left:
            self._left = self._rng.sample(self._items, len(self._items))
        return self._left.pop()


def _weighted(rng: random.Random, weights: dict[str, int]) -> _Cycle[str]:
    return _Cycle(rng, [item for item, weight in weights.items() for _ in range(weight)])


def agent_rows(rng: random.Random, count: int) -> Iterator[_Row]:
    """Streams of agent sentences with short silences between them."""
    trained = domain.SLOT_VALUES | {"price": domain.TRAINED_PRICES}
    values = {slot: _Cycle(rng, words) for slot, words in trained.items()}
    spelled = values | {"name": _Cycle(rng, domain.SPELLED_NAMES)}
    templates: dict[str, list[str]] = {}
    for kind, text in sentences.agent_templates():
        templates.setdefault(kind, []).append(text)
    cycles = {kind: _Cycle(rng, texts) for kind, texts in templates.items()}
    usual, naming = _weighted(rng, AGENT_KIND_WEIGHTS), _Cycle(rng, sentences.NAMING_KINDS)
    voices = _weighted(rng, AGENT_VOICE_WEIGHTS)
    for _ in range(count):
        row = _Row("agent", voices.draw())
        row.at_sec = rng.uniform(0.4, 0.5)
        kinds, said = (naming, spelled) if rng.random() < SPELLED_SHARE else (usual, values)
        while True:
            kind = kinds.draw()
            template = cycles[kind].draw()
            slots = {slot: words.draw() for slot, words in said.items() if f"{{{slot}}}" in template}
            text = template.format(**slots)
            utterance = say_as_agent(rng, row.stream.voice, text)
            if not row.add(utterance, 0.3, kind=kind, text=text, slots=slots):
                break
            row.at_sec += rng.uniform(0.4, 0.5)
        row.pcm = at_loudness(row.pcm, rng.uniform(*AGENT_LUFS))
        yield row


def user_rows(rng: random.Random, count: int) -> Iterator[_Row]:
    """Streams of one user each; half of them start to speak at once, half after some background."""
    texts: dict[str, list[str]] = {}
    for kind, text in sentences.user_sentences():
        texts.setdefault(kind, []).append(text)
    cycles = {kind: _Cycle(rng, said) for kind, said in texts.items()}
    kinds, fillers = _weighted(rng, USER_KIND_WEIGHTS), _Cycle(rng, sentences.FILLERS)
    openings = _Cycle(rng, sentences.STORY_OPENINGS)
    noise = np.random.default_rng(rng.getrandbits(32))
    for index in range(count):
        user = users.random_user(rng)
        row = _Row("user", user.voice)
        row.at_sec = rng.uniform(0.0, 0.15) if index % 2 else rng.uniform(2.0, 3.0)
        told = rng.randint(*STORY_SENTENCES) if rng.random() < STORY_SHARE else 0
        while True:
            kind = sentences.STORY if told > 0 else kinds.draw()
            if kind == sentences.MUMBLE:
                text = sentences.mumbled(rng)
            else:
                text = openings.draw() if told > 0 and not row.stream.clips else cycles[kind].draw()
            told -= 1
            text, said = ask(rng, user, kind, text, fillers)
            if not row.add(said, 1.6, kind=kind, text=text):
                break
            row.at_sec += rng.uniform(0.6, 1.0)
        if rng.random() < SECOND_TALKER_SHARE:
            talker = users.second_talker(rng, len(row.pcm))
            row.pcm += talker * users.level(row.pcm) / users.level(talker) * 10 ** (rng.uniform(*SECOND_TALKER_DB) / 20)
        row.pcm = users.through_microphone(row.pcm, user, noise)
        yield row


def ask(
    rng: random.Random, user: users.UserSpeaker, kind: str, text: str, fillers: _Cycle[str]
) -> tuple[str, tts.Utterance]:  # fmt: skip
    """A sentence as people say it: with something before it, or with a pause in it, now and then; and its text."""
    halves = sentences.led_in_questions(kind) if kind in sentences.TURNS and rng.random() < LED_IN_SHARE else ()
    if halves:
        first, second = rng.choice(halves)
        return f"{first} {second}", users.thinking(
            rng, users.say_as_user(rng, user, first), users.say_as_user(rng, user, second)
        )
    if kind in sentences.TURNS and rng.random() < FILLER_SHARE:
        text = sentences.with_filler(fillers.draw(), text)
    said = users.say_as_user(rng, user, text)
    if len(said.words) >= HESITATION_WORDS and rng.random() < HESITATION_SHARE:
        said = users.hesitating(rng, said)
    return text, said


def voice_prompt(rng: random.Random, voice: str) -> np.ndarray:
    """A voice prompt of an agent voice, [T] float32, 1.5 to 4 s, at -24 LUFS."""
    parts = [say_as_agent(rng, voice, sentences.voice_text(rng)).pcm for _ in range(2)]
    pcm = np.concatenate(parts)[: int(rng.uniform(1.5, 4.0) * SAMPLE_RATE_HZ)]
    return at_loudness(pcm)


def at_loudness(pcm: np.ndarray, lufs: float = VOICE_LUFS) -> np.ndarray:
    """[T] float32 at this loudness, that of voice prompts; one short word is measured as if it were repeated."""
    meter = pyloudnorm.Meter(SAMPLE_RATE_HZ)
    shortest = int(meter.block_size * SAMPLE_RATE_HZ) + 1
    loudness = meter.integrated_loudness(np.resize(pcm, max(len(pcm), shortest)))
    return (pcm * 10 ** ((lufs - loudness) / 20)).clip(-1.0, 1.0).astype(np.float32)


def voice_rows(rng: random.Random, count: int) -> Iterator[_Row]:
    """Streams that are one voice prompt each, from their first sample on."""
    voices = _weighted(rng, AGENT_VOICE_WEIGHTS)
    for _ in range(count):
        row = _Row("voice", voices.draw())
        pcm = voice_prompt(rng, row.stream.voice)
        row.pcm[: len(pcm)] = pcm
        row.stream.end_sec = len(pcm) / SAMPLE_RATE_HZ
        yield row


ROLES = {"agent": agent_rows, "user": user_rows, "voice": voice_rows}


def shard_role(index: int) -> str:
    return SHARD_PATTERN[index % len(SHARD_PATTERN)]


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"{shard_role(index)}_{index:04d}.npy"


def speak_shard(job: tuple[Path, int]) -> float:
    """Speaks one shard unless it is there already; returns its seconds."""
    folder, index = job
    path, role = shard_path(folder, index), shard_role(index)
    if not path.exists():
        rows = list(ROLES[role](random.Random(f"nano-{index}"), STREAMS_PER_SHARD[role]))
        pcm = np.stack([np.round(row.pcm * 32767) for row in rows]).astype(np.int16)
        path.with_suffix(".json").write_text(json.dumps([asdict(row.stream) for row in rows]))
        partial = path.with_suffix(".tmp.npy")
        np.save(partial, pcm)
        partial.rename(path)  # a shard that has its name is whole
    return STREAMS_PER_SHARD[role] * STREAM_SEC[role]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/nano/speech"))
    parser.add_argument("--hours", type=float, default=20.0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    started, spoken_sec, planned_sec = time.monotonic(), 0.0, 0.0
    jobs: list[tuple[Path, int]] = []
    while planned_sec < options.hours * 3600:
        role = shard_role(len(jobs))
        planned_sec += STREAMS_PER_SHARD[role] * STREAM_SEC[role]
        jobs.append((options.out, len(jobs)))
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for seconds in pool.imap(speak_shard, jobs):
            spoken_sec += seconds
            log.info("%.2f h of speech after %.0f s", spoken_sec / 3600, time.monotonic() - started)


if __name__ == "__main__":
    main()
