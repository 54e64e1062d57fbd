"""Clips: encoded recordings cut into the sentences that dialogues are assembled from.

A folder holds `ROLE_NNNN.codes.npy`, int16 [streams, 8, frames], beside the `.json` of
`training.speech`, and `constants.json` with the codec's silence and sine codes.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from personaplex.audio.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ
from training import sentences
from training.lm.tokenizer import TextIds

FRAME_HZ = SAMPLE_RATE_HZ / FRAME_SAMPLES
LEAD_FRAMES = 1  # of an agent clip before its first word: room for the end-of-padding token
TAIL_FRAMES = 3  # after the last sound, until the codec is silent again
USER_TAIL_FRAMES = 12  # of a user's clip after the last sound, at most
FORGOTTEN_FRAMES = 20  # the codec takes so long to forget speech; a sudden silence would give the turn's end away
UNSETTLED_FRAMES = 2  # with which the codec begins
LEAST_BACKGROUND_FRAMES = 8
LONGEST_WORD_FRAMES = 12


def frame_of(time_sec: float) -> int:
    return int(time_sec * FRAME_HZ)


@dataclass
class AgentClip:
    """One sentence of the agent. `codes`: [8, n]; `words`: (frame the word starts in, its token ids).

    `slots`: word index at which the name, the place, the price or the hour starts, and `values` what fills them.
    From a slot on another reading of the same template may be spliced in.
    """

    codes: np.ndarray
    words: list[tuple[int, tuple[int, ...]]]
    slots: dict[str, int] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)

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
    return AgentClip(
        codes=np.concatenate([first.codes[:, :cut], second.codes[:, start:]], 1),
        words=first.words[:i] + moved,
        slots=slots | later,
        values=values | {s: second.values[s] for s in later},
    )


@dataclass
class UserClip:
    """One sentence of a user. `codes`: [8, n]; the speech ends `tail` frames before the codes do.

    `words`: [n] int64, the number of the word being said (`sentences.user_vocabulary`), or -1. `quiet`: [8, m], what
    follows while the user is silent. `good`: what it asks the price of, "" where it names nothing.
    """

    kind: str
    codes: np.ndarray
    tail: int
    words: np.ndarray
    quiet: np.ndarray
    good: str = ""


@dataclass
class UserSession:
    """One user's recordings, all encoded as one stream.

    `opening`: [8, n], the stream's first frames without speech, or None where `clips[0]` starts the stream.
    `background`: [8, n], what their microphone hears when they are silent.
    """

    clips: list[UserClip]
    opening: np.ndarray | None
    background: np.ndarray

    @property
    def good(self) -> str:
        """The first thing whose price is asked, "" where none is."""
        return next((clip.good for clip in self.clips if clip.good), "")


@dataclass
class ClipBank:
    """All recordings. `agent` is keyed by (voice, kind), `voices` by voice."""

    agent: dict[tuple[str, str], list[AgentClip]]
    users: list[UserSession]
    voices: dict[str, list[np.ndarray]]
    silence: np.ndarray  # [8]
    sine: np.ndarray  # [8]

    @classmethod
    def load(cls, folder: Path, ids: TextIds) -> ClipBank:
        bank = cls(defaultdict(list), [], defaultdict(list), *load_constants(folder))
        for codes, stream in streams(folder, "agent"):
            for clip in stream["clips"]:
                bank.agent[stream["voice"], clip["kind"]].append(_agent_clip(codes, clip, ids))
        for codes, stream in streams(folder, "user"):
            bank.users.append(_user_session(codes, stream))
        for codes, stream in streams(folder, "voice"):
            bank.voices[stream["voice"]].append(codes[:, : math.ceil(stream["end_sec"] * FRAME_HZ)])
        return bank

    def without(self, count: int) -> tuple[ClipBank, list[UserSession]]:
        """The same recordings without the last `count` users, and these."""
        kept = len(self.users) - count
        return replace(self, users=self.users[:kept]), self.users[kept:]


def load_constants(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    constants = json.loads((folder / "constants.json").read_text())
    return np.array(constants["silence_codes"]), np.array(constants["sine_codes"])


def streams(folder: Path, role: str) -> Iterator[tuple[np.ndarray, dict]]:
    """Every encoded stream of a role: (codes [8, frames], its description)."""
    for path in sorted(folder.glob(f"{role}_*.codes.npy")):
        description = path.with_name(path.name.replace(".codes.npy", ".json"))
        yield from zip(np.load(path), json.loads(description.read_text()), strict=True)


def _agent_clip(codes: np.ndarray, clip: dict, ids: TextIds) -> AgentClip:
    words = [(frame_of(start_sec), ids.word(text)) for text, start_sec in clip["words"]]
    begin = max(0, words[0][0] - LEAD_FRAMES)
    end = math.ceil(clip["end_sec"] * FRAME_HZ) + TAIL_FRAMES
    bare = [text.strip(".,?!") for text, _ in clip["words"]]
    slots = {slot: bare.index(value.split()[0]) for slot, value in clip["slots"].items()}
    moved = [(frame - begin, tokens) for frame, tokens in words]
    return AgentClip(codes[:, begin:end], moved, slots, clip["slots"])


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
        clips.append(UserClip(clip["kind"], codes[:, begin:end], end - sounded, words, quiet[:, end - sounded :], good))
    first = begins[0]
    if first > 4:
        return UserSession(clips, codes[:, :first], codes[:, UNSETTLED_FRAMES:first])
    return UserSession(clips, None, quiet[:, min(FORGOTTEN_FRAMES, quiet.shape[1] - LEAST_BACKGROUND_FRAMES) :])
