"""The domain's recordings: agent clips, user sessions and voice prompts, as fixed-length streams.

    python -m training.speech --out build/nano/speech --hours 20 --processes 2
    python -m training.speech --out build/nano/speech --cast neural --hours 20 --kokoro-minutes 170

A shard is `PART_NNNN.npy`, int16 [streams, samples] at 24 kHz, with `PART_NNNN.json` saying what is
where; its part is a role, or a role and `-kokoro`: what Kokoro says, which takes a core as long as it speaks.
Shards are independent and seeded by their number, so the command can be stopped and resumed,
and any number of them is a balanced sample. Hardly any recording is meant to be used twice: tempo,
pitch and liveliness are drawn anew for each one.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from training import agents, kokoro_speech, orders, sentences, surroundings, tts, users
from training.recital import SAMPLE_RATE_HZ, STREAM_SEC, Cycle, Row, agent_rows, at_loudness, weighted

log = logging.getLogger(__name__)

KOKORO = "-kokoro"  # of the parts that it speaks
STREAMS_PER_SHARD = {
    "agent": 16, "user": 20, "voice": 96, f"agent{KOKORO}": 4, f"user{KOKORO}": 4, f"voice{KOKORO}": 16,
}  # fmt: skip
SHARD_PATTERN = ("agent", "user", "agent", "user", "agent", "user", "agent", "voice", "agent", "user")
KOKORO_PATTERN = ("agent", "user", "agent", "agent", "user", "agent", "voice", "agent", "user", "agent", "agent")
FURTHER_USERS_FROM = 5000  # their shards' numbers, beyond those of any plan
VALUES_PARTS = 8  # a shard of Kokoro's has every eighth name, place, price; eight of them have all
AGENT_VOICES = tuple(agents.CASTS[agents.FLITE])  # those that Debian's packages can speak

USER_KIND_WEIGHTS = dict(
    name=12, place=10, price=9, hours=8, hello=2, how=5, thanks=3, bye=3, robot=4, help=4, rude=5, beyond=11, mumble=6,
    maker=3, time=3, joke=3, weather=3, weekend=3, parrot=5, order=24,
)  # fmt: skip
STORY_SHARE = 0.25  # of the users tell a story before they ask
STORY_SENTENCES = (3, 5)
FILLER_SHARE = 0.3  # of the questions begin with a filler
LED_IN_SHARE = 0.3  # of the questions have a beginning of their own, with or without a pause after it

HESITATION_SHARE = 0.35  # of the user's sentences of at least so many words
HESITATION_WORDS = 4
SECOND_TALKER_SHARE = 0.25  # of the users have somebody speaking behind them
SECOND_TALKER_DB = (-22.0, -8.0)
LONG_LEAD_SHARE = 0.3  # of the users who are silent first are so for long
AT_ONCE_SEC, LEAD_SEC, LONG_LEAD_SEC = (0.0, 0.15), (2.0, 3.0), (5.0, 7.0)

say_as_agent = agents.say


@dataclass(frozen=True)
class Shard:
    """One job: `part` and `index` name it; `cast`: who speaks as the agent."""

    part: str
    index: int
    cast: str

    @property
    def role(self) -> str:
        return self.part.removesuffix(KOKORO)

    @property
    def is_slow(self) -> bool:
        return self.part.endswith(KOKORO)

    @property
    def seconds(self) -> float:
        """Of its streams, each whole."""
        return STREAMS_PER_SHARD[self.part] * STREAM_SEC[self.role]

    def _fitting(self) -> list[str]:
        return [name for name, voice in agents.CASTS[self.cast].items() if voice.is_slow == self.is_slow]

    def voices(self) -> dict[str, int]:
        """The agent's voices that this shard may have; one of Kokoro's, in turn."""
        fitting = self._fitting()
        return agents.shares(fitting[self.index % len(fitting) :][:1] if self.is_slow else fitting)

    def values(self) -> tuple[int, int]:
        """Which part of all names, places and prices is said, and of how many; all of them by fast voices."""
        return (self.index // len(self._fitting()) % VALUES_PARTS, VALUES_PARTS) if self.is_slow else (0, 1)

    def rows(self) -> Iterator[Row]:
        seed = "nano" if self.cast == agents.FLITE else f"{self.cast}-{self.part}"
        rng, count = random.Random(f"{seed}-{self.index}"), STREAMS_PER_SHARD[self.part]
        return ROLES[self.role](rng, count, self)


def agent_part(rng: random.Random, count: int, shard: Shard) -> Iterator[Row]:
    """Streams of agent sentences."""
    return agent_rows(rng, count, shard.voices(), shard.values())


def user_part(rng: random.Random, count: int, shard: Shard) -> Iterator[Row]:
    """Streams of one user each; half of them start to speak at once, half after some background."""
    names = kokoro_speech.styles() if shard.is_slow else []
    noise, neural = np.random.default_rng(rng.getrandbits(32)), shard.cast == agents.NEURAL
    babbles = [surroundings.babble(rng)] if neural else []
    said = _Said(rng)
    for index in range(count):
        user = users.random_user(rng, kokoro_speech.random_voice(rng, names) if names else None, neural=neural)
        row = Row("user", user.voice)
        lead = LONG_LEAD_SEC if neural and rng.random() < LONG_LEAD_SHARE else LEAD_SEC
        row.at_sec = rng.uniform(*(AT_ONCE_SEC if index % 2 else lead))
        said.fill(row, user)
        if rng.random() < SECOND_TALKER_SHARE:
            talker = users.second_talker(rng, len(row.pcm))
            row.pcm += talker * users.level(row.pcm) / users.level(talker) * 10 ** (rng.uniform(*SECOND_TALKER_DB) / 20)
        row.pcm = (
            heard(rng, row.pcm, user, noise, babbles) if neural else users.through_microphone(row.pcm, user, noise)
        )
        yield row


def heard(
    rng: random.Random, pcm: np.ndarray, user: users.UserSpeaker, noise: np.random.Generator, babbles: list[np.ndarray]
) -> np.ndarray:  # fmt: skip
    """The user's speech through their microphone, with the noise of where they are: [T] float32."""
    kind, snr_db = surroundings.random_noise(rng)
    pcm = users.through_microphone(pcm, user, noise, hiss=kind == surroundings.HISS)
    if kind == surroundings.HISS or user.snr_db is None:
        return pcm
    return surroundings.with_noise(pcm, kind, snr_db, noise, babbles)


class _Said:
    """What users say, each sentence as rarely as the others of its kind."""

    def __init__(self, rng: random.Random) -> None:
        texts: dict[str, list[str]] = {}
        for kind, text in sentences.user_sentences():
            texts.setdefault(kind, []).append(text)
        self._rng, self._texts = rng, {kind: Cycle(rng, said) for kind, said in texts.items()}
        self._kinds, self._fillers = weighted(rng, USER_KIND_WEIGHTS), Cycle(rng, sentences.FILLERS)
        self._openings = Cycle(rng, sentences.STORY_OPENINGS)

    def fill(self, row: Row, user: users.UserSpeaker) -> None:
        """Sentence after sentence until the stream is full."""
        rng = self._rng
        told = rng.randint(*STORY_SENTENCES) if rng.random() < STORY_SHARE else 0
        while True:
            kind = sentences.STORY if told > 0 else self._kinds.draw()
            if kind == orders.ORDER:
                text, said, slots = ordered(rng, user)
            else:
                text, said = ask(rng, user, kind, self._text(kind, told > 0 and not row.stream.clips), self._fillers)
                slots = {"phrase": sentences.phrase_in(text)} if kind == sentences.PARROT else {}
            told -= 1
            if not row.add(said, 1.6, kind=kind, text=text, slots=slots):
                break
            row.at_sec += rng.uniform(0.6, 1.0)

    def _text(self, kind: str, opens_story: bool) -> str:
        if kind == sentences.MUMBLE:
            return sentences.mumbled(self._rng)
        return self._openings.draw() if opens_story else self._texts[kind].draw()


def ordered(rng: random.Random, user: users.UserSpeaker) -> tuple[str, tts.Utterance, orders.Slots]:
    """An order as people say it, with pauses between its parts: its text, its sound, and what is ordered."""
    slots = orders.drawn(rng)
    pieces = orders.requested(rng, slots)
    text = " ".join(pieces)
    return text, users.ordering(rng, users.say_as_user(rng, user, text), pieces), slots


def ask(
    rng: random.Random, user: users.UserSpeaker, kind: str, text: str, fillers: Cycle[str]
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


def voice_part(rng: random.Random, count: int, shard: Shard) -> Iterator[Row]:
    """Streams that are one voice prompt each, from their first sample on."""
    voices = weighted(rng, shard.voices())
    for _ in range(count):
        row = Row("voice", voices.draw())
        pcm = voice_prompt(rng, row.stream.voice)
        row.pcm[: len(pcm)] = pcm
        row.stream.end_sec = len(pcm) / SAMPLE_RATE_HZ
        yield row


ROLES: dict[str, Callable[[random.Random, int, Shard], Iterator[Row]]] = {
    "agent": agent_part, "user": user_part, "voice": voice_part,
}  # fmt: skip


def shard_path(folder: Path, shard: Shard) -> Path:
    return folder / f"{shard.part}_{shard.index:04d}.npy"


def speak_shard(job: tuple[Path, Shard]) -> float:
    """Speaks one shard unless it is there already; returns its seconds of speech, of all streams whole if not slow."""
    folder, shard = job
    path = shard_path(folder, shard)
    if not path.exists():
        write_shard(path, list(shard.rows()))
    return _seconds(path, shard)


def write_shard(path: Path, rows: list[Row]) -> None:
    """Writes the streams and, last, gives the shard its name."""
    pcm = np.stack([np.round(row.pcm * 32767) for row in rows]).astype(np.int16)
    path.with_suffix(".json").write_text(json.dumps([asdict(row.stream) for row in rows]))
    partial = path.with_suffix(".tmp.npy")
    np.save(partial, pcm)
    partial.rename(path)  # a shard that has its name is whole


def _seconds(path: Path, shard: Shard) -> float:
    if not shard.is_slow:
        return shard.seconds
    told = json.loads(path.with_suffix(".json").read_text())
    spoken = [clip["end_sec"] - clip["start_sec"] for stream in told for clip in stream["clips"]]
    return sum(spoken) or sum(stream["end_sec"] for stream in told)


def planned(hours: float, cast: str) -> list[Shard]:
    """The shards of so many hours by voices that are fast."""
    shards: list[Shard] = []
    left_sec = hours * 3600
    while left_sec > 0:
        shards.append(Shard(SHARD_PATTERN[len(shards) % len(SHARD_PATTERN)], len(shards), cast))
        left_sec -= shards[-1].seconds
    return shards


def further_users(hours: float, cast: str) -> list[Shard]:
    """The shards of so many hours of users alone, beside those of the plan."""
    first = Shard("user", FURTHER_USERS_FROM, cast)
    return [replace(first, index=first.index + number) for number in range(math.ceil(hours * 3600 / first.seconds))]


def kokoro_shards(cast: str) -> Iterator[Shard]:
    """Kokoro's shards without end, each part counted by itself."""
    counts = dict.fromkeys(ROLES, 0)
    while True:
        for role in KOKORO_PATTERN:
            yield Shard(f"{role}{KOKORO}", counts[role], cast)
            counts[role] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/nano/speech"))
    parser.add_argument("--cast", choices=sorted(agents.CASTS), default=agents.FLITE, help="the agent's voices")
    parser.add_argument("--hours", type=float, default=20.0, help="of streams by voices that are fast")
    parser.add_argument("--user-hours", type=float, default=0.0, help="of users alone beside them: ears need many")
    parser.add_argument("--kokoro-minutes", type=float, default=0.0, help="of Kokoro's speech")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    started, spoken_sec = time.monotonic(), 0.0
    shards = planned(options.hours, options.cast) + further_users(options.user_hours, options.cast)
    jobs = [(options.out, shard) for shard in shards]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for seconds in pool.imap(speak_shard, jobs):
            spoken_sec += seconds
            log.info("%.2f h of speech after %.0f s", spoken_sec / 3600, time.monotonic() - started)
        spoken_sec = 0.0
        slow = kokoro_shards(options.cast)
        while spoken_sec < 60 * options.kokoro_minutes:
            ahead = [(options.out, next(slow)) for _ in range(options.processes)]
            spoken_sec += sum(pool.map(speak_shard, ahead))
            log.info("%.1f min of Kokoro's after %.0f s", spoken_sec / 60, time.monotonic() - started)


if __name__ == "__main__":
    main()
