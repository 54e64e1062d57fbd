"""What the agent says, one sentence after the other, as streams; and what a stream is."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import pyloudnorm

from training import agents, domain, orders, sentences, tts

SAMPLE_RATE_HZ = tts.SAMPLE_RATE_HZ
STREAM_SEC = {"agent": 24.0, "user": 20.0, "voice": 4.0, "people": 20.0}
VOICE_LUFS = -24.0
AGENT_LUFS = (-21.5, -18.5)
AGENT_KIND_WEIGHTS = dict(
    greet=20, name=12, place=10, price=14, hours=6, robot=2, help=3, rude=2, beyond=3, unknown=3, how=2, thanks=2,
    bye=2, nod=4, repeat=3, maker=2, time=2, joke=2, weather=2, weekend=2, parrot=4, order=14,
)  # fmt: skip
SPELLED_SHARE = 0.2  # of the agents' streams say nothing but spelled names


@dataclass
class Clip:
    """One sentence inside a stream; times in seconds from the start of the stream.

    `slots`: what fills them; of a user's sentence, what they order or want repeated.
    """

    kind: str
    text: str
    start_sec: float
    end_sec: float
    words: list[tuple[str, float]]
    slots: dict[str, str] = field(default_factory=dict)


@dataclass
class Stream:
    """One row of a shard. `end_sec`: from here to the end there is silence or background noise."""

    voice: str
    clips: list[Clip] = field(default_factory=list)
    end_sec: float = 0.0


class Row:
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


class Cycle(Generic[Item]):
    """Draws without replacement and starts over when all are drawn, so that counts stay even."""

    def __init__(self, rng: random.Random, items: Iterable[Item]) -> None:
        self._rng, self._items = rng, list(items)
        self._left: list[Item] = []

    def draw(self) -> Item:
        if not self._left:
            self._left = self._rng.sample(self._items, len(self._items))
        return self._left.pop()


def weighted(rng: random.Random, weights: Mapping[str, int]) -> Cycle[str]:
    return Cycle(rng, [item for item, weight in weights.items() for _ in range(weight)])


def at_loudness(pcm: np.ndarray, lufs: float = VOICE_LUFS) -> np.ndarray:
    """[T] float32 at this loudness, that of voice prompts; one short word is measured as if it were repeated."""
    meter = pyloudnorm.Meter(SAMPLE_RATE_HZ)
    shortest = int(meter.block_size * SAMPLE_RATE_HZ) + 1
    loudness = meter.integrated_loudness(np.resize(pcm, max(len(pcm), shortest)))
    return (pcm * 10 ** ((lufs - loudness) / 20)).clip(-1.0, 1.0).astype(np.float32)


class Script:
    """The agent's sentences, drawn so that each value of a slot comes as often as the others.

    `part` is (k, n): the k-th of n parts of all values, so that n shards have each value as often.
    """

    def __init__(self, rng: random.Random, part: tuple[int, int] = (0, 1)) -> None:
        number, parts = part
        known = domain.SLOT_VALUES | {"price": domain.TRAINED_PRICES}
        self._usual = {slot: Cycle(rng, words[number::parts]) for slot, words in known.items()}
        self._spelled = self._usual | {"name": Cycle(rng, domain.SPELLED_NAMES[number::parts])}
        templates: dict[str, list[str]] = {}
        for kind, text in sentences.agent_templates():
            templates.setdefault(kind, []).append(text)
        self._templates = {kind: Cycle(rng, texts) for kind, texts in templates.items()}
        self._kinds = weighted(rng, AGENT_KIND_WEIGHTS), Cycle(rng, sentences.NAMING_KINDS)
        self._orders, self._rng = Cycle(rng, orders.covering()[number::parts]), rng

    def sentence(self, spelled: bool) -> tuple[str, str, dict[str, str]]:
        """Kind, text and what fills its slots, in the order in which they are said; with a `spelled` name, if so."""
        kind = self._kinds[spelled].draw()
        if kind == orders.ORDER:
            order = self._orders.draw() if self._rng.random() < 0.5 else orders.drawn(self._rng)
            return kind, orders.repeated(order), order
        template = self._templates[kind].draw()
        values = self._spelled if spelled else self._usual
        slots = {slot: words.draw() for slot, words in values.items() if f"{{{slot}}}" in template}
        return kind, template.format(**slots), slots


def agent_rows(
    rng: random.Random, count: int, voices: Mapping[str, int], part: tuple[int, int] = (0, 1)
) -> Iterator[Row]:  # fmt: skip
    """Streams of agent sentences with short silences between them. `part`: of the values, as `Script` has it."""
    script, drawn = Script(rng, part), weighted(rng, voices)
    for _ in range(count):
        row = Row("agent", drawn.draw())
        row.at_sec = rng.uniform(0.4, 0.5)
        spelled = rng.random() < SPELLED_SHARE
        while True:
            kind, text, slots = script.sentence(spelled)
            if not row.add(agents.say(rng, row.stream.voice, text), 0.3, kind=kind, text=text, slots=slots):
                break
            row.at_sec += rng.uniform(0.4, 0.5)
        row.pcm = at_loudness(row.pcm, rng.uniform(*AGENT_LUFS))
        yield row
