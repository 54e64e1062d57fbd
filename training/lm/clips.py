"""Clips: encoded recordings cut into the sentences that dialogues are assembled from.

A folder holds `PART_NNNN.codes.npy`, int16 [streams, 8, frames], beside the `.json` of
`training.speech`, and `constants.json` with the codec's silence and sine codes; of the agent's streams
`PART_NNNN.echo.npy`, too: the same streams as a microphone beside the loudspeaker hears them.
"""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from personaplex.audio.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ
from training import orders, people, sentences
from training.lm.tokenizer import TextIds

FRAME_HZ = SAMPLE_RATE_HZ / FRAME_SAMPLES
LEAD_FRAMES = 1  # of an agent clip before its first word: room for the end-of-padding token
TAIL_FRAMES = 3  # after the last sound, until the codec is silent again
USER_TAIL_FRAMES = 12  # of a user's clip after the last sound, at most
FORGOTTEN_FRAMES = 20  # the codec takes so long to forget speech; a sudden silence would give the turn's end away
UNSETTLED_FRAMES = 2  # with which the codec begins
LEAST_BACKGROUND_FRAMES = 8
LONGEST_WORD_FRAMES = 12
ECHO_TAIL_FRAMES = 8  # of an echo, beyond the clip that it is of
ECHO_SUFFIX = ".echo.npy"


def frame_of(time_sec: float) -> int:
    return int(time_sec * FRAME_HZ)


@dataclass(eq=False)
class AgentClip:
    """One sentence of the agent. `codes`: [8, n]; `words`: (frame the word starts in, its token ids).

    `slots`: word index at which the name, the place, the price or the hour starts, and `values` what fills them.
    From a slot on another reading of the same template may be spliced in. `echo`: [8, n + ECHO_TAIL_FRAMES] at most,
    the codes of the clip's own echo, where there is one.
    """

    codes: np.ndarray
    words: list[tuple[int, tuple[int, ...]]]
    slots: dict[str, int] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    echo: np.ndarray | None = None

    def content_words(self) -> set[int]:
        """Indices of the words that fill a slot."""
        return {at for slot, first in self.slots.items() for at in range(first, self._after(slot))}

    def refilled(self, slot: str, value: str, ids: TextIds) -> AgentClip:
        """The same text with another value in a slot; the sound no longer fits it."""
        first, last = self.slots[slot], self._after(slot)
        (frame, _), (_, tokens) = self.words[first], self.words[last - 1]
        mark = tokens[len(ids.word(self.values[slot].split()[-1])) :]  # the punctuation behind it
        words = [(frame, ids.word(word)) for word in value.split()]
        words[-1] = (frame, words[-1][1] + mark)
        moved = len(words) - (last - first)
        slots = {s: at + moved if at > first else at for s, at in self.slots.items()}
        return AgentClip(
            self.codes, [*self.words[:first], *words, *self.words[last:]], slots, self.values | {slot: value}
        )

    def _after(self, slot: str) -> int:
        return self.slots[slot] + len(self.values[slot].split())

    def content_frames(self) -> list[tuple[int, int]]:
        """(start, end) of the frames in which what fills a slot is spoken."""
        spans = []
        for slot, first in self.slots.items():
            last = self._after(slot) - 1
            end = self.words[last + 1][0] if last + 1 < len(self.words) else self.codes.shape[1] - TAIL_FRAMES
            spans.append((self.words[first][0], end))
        return spans


def splice(first: AgentClip, second: AgentClip, slot: str) -> AgentClip:
    """`first` up to the slot, `second` from there: what precedes a name no longer tells which recording follows."""
    i, j = first.slots[slot], second.slots[slot]
    cut, start = first.words[i][0], second.words[j][0]
    moved = [(frame - start + cut, ids) for frame, ids in second.words[j:]]
    slots = {s: at for s, at in first.slots.items() if at < i}
    values = {s: first.values[s] for s in slots}
    later = {s: at - j + i for s, at in second.slots.items() if at >= j}
    echo = None
    if first.echo is not None and second.echo is not None:
        echo = np.concatenate([first.echo[:, :cut], second.echo[:, start:]], 1)
    return AgentClip(
        codes=np.concatenate([first.codes[:, :cut], second.codes[:, start:]], 1),
        words=first.words[:i] + moved,
        slots=slots | later,
        values=values | {s: second.values[s] for s in later},
        echo=echo,
    )


class OrderBook:
    """One voice's readings of orders, from which the answer to any order is spliced."""

    def __init__(self, clips: list[AgentClip]) -> None:
        self._by_pair: dict[tuple[str, str, str], list[AgentClip]] = defaultdict(list)
        self._by_first: dict[str, list[AgentClip]] = defaultdict(list)
        for clip in clips:
            pairs = orders.pairs_of(clip.values)
            self._by_first[pairs[0][0]].append(clip)
            for pair in pairs:
                self._by_pair[pair].append(clip)

    def reading(self, rng: random.Random, order: Mapping[str, str]) -> AgentClip | None:
        """The answer to an order, of as many readings as it has slots; None where one of them was never read."""
        joined: AgentClip | None = None
        for slot, value, after in reversed(orders.pairs_of(order)):
            if not (found := self._by_pair.get((slot, value, after))):
                return None
            clip = rng.choice(found)
            joined = clip if joined is None else splice(clip, joined, after)
        if joined is None:
            return None
        first = next(slot for slot in orders.SLOTS if slot in order)
        begun = self._by_first.get(first)
        return splice(rng.choice(begun), joined, first) if begun else None


@dataclass(eq=False)
class UserClip:
    """One sentence of a user. `codes`: [8, n]; the speech ends `tail` frames before the codes do.

    `words`: [n] int64, the number of the word being said (`sentences.user_vocabulary`), or -1. `quiet`: [8, m], what
    follows while the user is silent. `good`: what it asks the price of, "" where it names nothing. `slots`: what it
    orders or wants repeated.
    """

    kind: str
    codes: np.ndarray
    tail: int
    words: np.ndarray
    quiet: np.ndarray
    good: str = ""
    slots: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class UserSession:
    """One user's recordings, all encoded as one stream.

    `opening`: [8, n], the stream's first frames without speech, or None where `clips[0]` starts the stream.
    `background`: [8, n], what their microphone hears when they are silent.
    """

    clips: list[UserClip]
    opening: np.ndarray | None
    background: np.ndarray
    is_person: bool = False

    @property
    def good(self) -> str:
        """The first thing whose price is asked, "" where none is."""
        return next((clip.good for clip in self.clips if clip.good), "")

    @property
    def orders(self) -> bool:
        """Whether coffee is ordered."""
        return any(clip.kind == orders.ORDER for clip in self.clips)


@dataclass
class ClipBank:
    """All recordings. `agent` is keyed by (voice, kind), `voices` by voice. `people`: those only listened to."""

    agent: dict[tuple[str, str], list[AgentClip]]
    users: list[UserSession]
    voices: dict[str, list[np.ndarray]]
    silence: np.ndarray  # [8]
    sine: np.ndarray  # [8]
    people: list[UserSession] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path, ids: TextIds) -> ClipBank:
        bank = cls(defaultdict(list), [], defaultdict(list), *load_constants(folder))
        for codes, stream, echo in streams(folder, "agent"):
            for clip in stream["clips"]:
                bank.agent[stream["voice"], clip["kind"]].append(_agent_clip(codes, clip, ids, echo))
        for role, sessions in (("user", bank.users), ("people", bank.people)):
            for codes, stream, _ in streams(folder, role):
                if stream["clips"]:
                    sessions.append(replace(_user_session(codes, stream), is_person=stream["voice"] in people.SETS))
        for codes, stream, _ in streams(folder, "voice"):
            bank.voices[stream["voice"]].append(codes[:, : math.ceil(stream["end_sec"] * FRAME_HZ)])
        return bank

    def without(self, count: int) -> tuple[ClipBank, list[UserSession]]:
        """The same recordings without the last `count` users, and these."""
        kept = len(self.users) - count
        return replace(self, users=self.users[:kept]), self.users[kept:]


def load_constants(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    constants = json.loads((folder / "constants.json").read_text())
    return np.array(constants["silence_codes"]), np.array(constants["sine_codes"])


def streams(folder: Path, role: str) -> Iterator[tuple[np.ndarray, dict, np.ndarray | None]]:
    """Every encoded stream of a role: (codes [8, frames], its description, its echo's codes [8, frames] or None)."""
    for path in sorted(folder.glob(f"{role}[_-]*.codes.npy")):
        name = path.name.removesuffix(".codes.npy")
        described = json.loads(path.with_name(f"{name}.json").read_text())
        echo = path.with_name(name + ECHO_SUFFIX)
        echoes = np.load(echo) if echo.exists() else [None] * len(described)
        yield from zip(np.load(path), described, echoes, strict=True)


def _first_words(said: list[str], slots: dict[str, str]) -> dict[str, int]:
    """The index of each slot's first word, in the order in which the slots are said: "medium medium roast"."""
    found, after = {}, 0
    for slot, value in slots.items():
        words = value.split()
        starts = range(after, len(said) - len(words) + 1)
        found[slot] = next(at for at in starts if said[at : at + len(words)] == words)
        after = found[slot] + len(words)
    return found


def _agent_clip(codes: np.ndarray, clip: dict, ids: TextIds, echo: np.ndarray | None) -> AgentClip:
    words = [(frame_of(start_sec), ids.word(text)) for text, start_sec in clip["words"]]
    begin = max(0, words[0][0] - LEAD_FRAMES)
    end = math.ceil(clip["end_sec"] * FRAME_HZ) + TAIL_FRAMES
    bare = [text.strip(".,?!") for text, _ in clip["words"]]
    moved = [(frame - begin, tokens) for frame, tokens in words]
    heard = None if echo is None else echo[:, begin : end + ECHO_TAIL_FRAMES]
    return AgentClip(codes[:, begin:end], moved, _first_words(bare, clip["slots"]), clip["slots"], heard)


def _user_words(words: list[tuple[str, float]], begin: int, sounded: int, end: int) -> np.ndarray:
    numbers = sentences.user_vocabulary()
    said = np.full(end - begin, -1)
    for (text, start_sec), following in zip(words, [*words[1:], ("", sounded / FRAME_HZ)], strict=True):
        first = frame_of(start_sec) - begin
        last = min(frame_of(following[1]) - begin, first + LONGEST_WORD_FRAMES)  # a hesitation may follow
        word = sentences.spoken_words(text)[0]
        said[first:last] = numbers.get(word, -1)  # none where it is mumbled, or said in older recordings alone
    return said


def _user_session(codes: np.ndarray, stream: dict) -> UserSession:
    clips, quiet = [], codes[:, math.ceil(stream["end_sec"] * FRAME_HZ) :]  # after the stream's last sentence
    begins = [frame_of(clip["start_sec"]) for clip in stream["clips"]]
    for clip, begin, following in zip(stream["clips"], begins, [*begins[1:], codes.shape[1]], strict=True):
        sounded = math.ceil(clip["end_sec"] * FRAME_HZ)
        end = min(sounded + USER_TAIL_FRAMES, following)
        words = _user_words(clip["words"], begin, sounded, end)
        good = sentences.good_in(clip["text"])
        after = quiet[:, end - sounded :]
        clips.append(UserClip(clip["kind"], codes[:, begin:end], end - sounded, words, after, good, clip["slots"]))
    first = begins[0]
    if first > 4:
        return UserSession(clips, codes[:, :first], codes[:, UNSETTLED_FRAMES:first])
    return UserSession(clips, None, quiet[:, min(FORGOTTEN_FRAMES, quiet.shape[1] - LEAST_BACKGROUND_FRAMES) :])
