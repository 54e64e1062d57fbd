"""Puts dialogues together from encoded recordings, frame by frame.

A dialogue is a persona's prompt followed by a conversation that fills the wanted number of frames:
the user is silent and is greeted, or speaks at once; questions and answers with pauses; sometimes
the user interrupts the agent, and sometimes nobody speaks for long.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from personaplex.config import END_OF_PADDING_ID
from training import domain
from training.lm.clips import TAIL_FRAMES, AgentClip, ClipBank, UserClip, UserSession, splice
from training.lm.tokenizer import TextIds

PAD_ID = 3
PROMPT_SILENCE_FRAMES = 6
MIN_VOICE_FRAMES = 19  # 1.5 s; a longer voice prompt is cut at random
NUM_CODEBOOKS = 8

GREETING_WAIT_FRAMES = (8, 16)  # how long a silent user is waited for
ANSWER_WAIT_FRAMES = (3, 6)  # after the user's last sound
HELLO_WAIT_FRAMES = (6, 9)  # a lone "hello" may go on as a question
PAUSE_FRAMES = (4, 24)
LONG_PAUSE_FRAMES = (40, 120)
STOP_FRAMES = (3, 6)  # how soon an interrupted agent falls silent
LONG_PAUSE_SHARE = 0.06
INTERRUPTED_SHARE = 0.1  # of what the agent says
SPLICED_SHARE = 0.6
LISTENING_SHARE = 0.75  # of a drill's sentences, those that answer a question
DRILLED_KINDS = ("greet", "name", "place")
RECITED_KINDS = ("greet", "name", "name", "place")


@dataclass(frozen=True)
class Opening:
    """How a conversation starts, and how often."""

    kind: str  # silent, question, hello
    at_once: bool
    weight: float


OPENINGS = (
    Opening("silent", False, 0.56),
    Opening("question", True, 0.16),
    Opening("question", False, 0.12),
    Opening("hello", True, 0.06),
    Opening("hello", False, 0.10),
)


@dataclass
class Dialogue:
    """`text`: [T]; `agent`, `user`: [8, T]; int64. The conversation starts at `prompt_frames`.

    `speaking`: [T] bool, the agent's speech; `content`: [T] bool, its names and places;
    `text_content`: [T] bool, their text tokens; `text_first`: [T] bool, the tokens a sentence begins with.
    `user_words`: [T] int64, the number of the word the user is saying, or -1.
    """

    text: np.ndarray
    agent: np.ndarray
    user: np.ndarray
    prompt_frames: int
    speaking: np.ndarray
    content: np.ndarray
    text_content: np.ndarray
    text_first: np.ndarray
    user_words: np.ndarray


class DialogueMaker:
    def __init__(self, bank: ClipBank, ids: TextIds, seed: int = 0) -> None:
        self.bank, self.ids = bank, ids
        self.rng = random.Random(seed)
        self.agent_voices = sorted({voice for voice, _ in bank.agent})
        self.at_once = [s for s in bank.users if s.opening is None]
        self.later = [s for s in bank.users if s.opening is not None]
        self._by_first: dict[str, list[UserSession]] = {}
        for session in self.at_once:
            self._by_first.setdefault(session.clips[0].kind, []).append(session)

    def _persona(self) -> tuple[str, str]:
        """A name and a place that may be trained on together."""
        while True:
            name, place = self.rng.choice(domain.NAMES), self.rng.choice(domain.PLACES)
            if not domain.is_held_out(name, place):
                return name, place

    def monologue(self, frames: int) -> Dialogue:
        """A user who speaks all the time while the agent is silent, to learn to listen from."""
        rng = self.rng
        draft = _Draft(frames, self.bank, rng.choice(self.bank.users))
        draft.hush(rng.randrange(1 << 16))
        clips, at = draft.session.clips, rng.randint(0, 8)
        while at < frames:
            at = draft.user_says(rng.choice(clips), at) + rng.randint(0, 6)
        return draft.finished()

    def drill(self, frames: int) -> Dialogue:
        """A persona's prompt, then questions and answers close together; the agent's side is text alone.

        Where names are this dense, copying them from the prompt is learned soon, and so is listening.
        """
        rng, (name, place) = self.rng, self._persona()
        voice = rng.choice(self.agent_voices)
        draft = _Draft(frames, self.bank, rng.choice(self.later or self.bank.users))
        heard = rng.choice(self.bank.voices[voice])[:, : rng.randint(1, 8)]
        draft.prompt(heard, self.ids.text(domain.system_prompt(rng, name, place)))
        draft.hush(rng.randrange(1 << 16))
        at = draft.start + rng.randint(0, 6)
        while at < frames:
            kind = rng.choice(DRILLED_KINDS)
            if rng.random() < LISTENING_SHARE:
                asked = rng.choice(rng.choice(self.bank.users).clips)
                kind = "greet" if asked.kind == "hello" else asked.kind
                at = draft.user_says(asked, at) + rng.randint(*ANSWER_WAIT_FRAMES)
            clip = self.agent_clip(voice, kind, name, place)
            if clip is not None:
                at = draft.agent_says(self._hurried(clip), at)
            at += rng.randint(0, 6)
        return draft.finished()

    def recital(self, frames: int) -> Dialogue:
        """The agent alone, sentence after sentence with any names and places: to learn to pronounce them.

        What it says has nothing to do with its prompt, so only the sound may be learned from.
        """
        rng, (name, place) = self.rng, self._persona()
        voice = rng.choice(self.agent_voices)
        draft = _Draft(frames, self.bank, rng.choice(self.later or self.bank.users))
        heard = rng.choice(self.bank.voices[voice])[:, : rng.randint(8, MIN_VOICE_FRAMES)]
        draft.prompt(heard, self.ids.text(domain.system_prompt(rng, name, place, plain=True)))
        draft.hush(rng.randrange(1 << 16))
        at = draft.start + rng.randint(0, 4)
        while at < frames:
            kind = rng.choice(RECITED_KINDS)
            clip = self.agent_clip(voice, kind, rng.choice(domain.NAMES), rng.choice(domain.PLACES))
            if clip is not None:
                at = draft.agent_says(clip, at)
            at += rng.randint(0, 3)
        return draft.finished()

    def _hurried(self, clip: AgentClip) -> AgentClip:
        """The same words as fast as one token a frame allows, give or take, and no sound."""
        words, at = [], 1
        for _, tokens in clip.words:
            words.append((at, tokens))
            at += len(tokens) + self.rng.randint(0, 2)
        silence = np.repeat(self.bank.silence[:, None], at + TAIL_FRAMES, 1)
        return AgentClip(silence, words, clip.slots, clip.name, clip.place)

    def make(self, frames: int) -> Dialogue:
        """A new dialogue of exactly `frames` frames."""
        rng = self.rng
        name, place = self._persona()
        opening = rng.choices(OPENINGS, [o.weight for o in OPENINGS])[0]
        voice = rng.choice(self.agent_voices)
        draft = _Draft(frames, self.bank, self._session(opening))
        prompt = rng.choice(self.bank.voices[voice])
        prompt = prompt[:, : rng.randint(min(MIN_VOICE_FRAMES, prompt.shape[1]), prompt.shape[1])]
        draft.prompt(prompt, self.ids.text(domain.system_prompt(rng, name, place)))
        _Conversation(self, draft, voice, name, place).run(opening)
        return draft.finished()

    def _session(self, opening: Opening) -> UserSession:
        if not opening.at_once:
            return self.rng.choice(self.later)
        if opening.kind == "hello":
            return self.rng.choice(self._by_first.get("hello", self.at_once))
        kinds = [kind for kind in self._by_first if kind != "hello"]
        weights = [domain.TURNS[kind].weight for kind in kinds]
        return self.rng.choice(self._by_first[self.rng.choices(kinds, weights)[0]])

    def agent_clip(self, voice: str, kind: str, name: str, place: str) -> AgentClip | None:
        """A reading of this kind for this persona, spliced from two more often than not; None if there is none."""
        clips, rng = self.bank.agent[voice, kind], self.rng
        slots = next(iter(clips)).slots if clips else {}
        if not slots:
            return rng.choice(clips) if clips else None
        wanted = {"name": name, "place": place}
        if set(slots) == {"name", "place"}:
            named = self._matching(clips, "name", name)
            placed = self._matching(clips, "place", place)
            if not named or not placed:
                return None
            clip = splice(rng.choice(named), rng.choice(placed), "place")
            return splice(rng.choice(clips), clip, "name") if rng.random() < SPLICED_SHARE else clip
        (slot,) = slots
        matching = self._matching(clips, slot, wanted[slot])
        if not matching:
            return None
        clip = rng.choice(matching)
        return splice(rng.choice(clips), clip, slot) if rng.random() < SPLICED_SHARE else clip

    def _matching(self, clips: list[AgentClip], slot: str, value: str) -> list[AgentClip]:
        index = self.__dict__.setdefault("_index", {})
        key = (id(clips), slot)
        if key not in index:
            index[key] = {}
            for clip in clips:
                index[key].setdefault(getattr(clip, slot), []).append(clip)
        return index[key].get(value, [])


class _Draft:
    """The token rows of a dialogue while it is being written."""

    def __init__(self, frames: int, bank: ClipBank, session: UserSession) -> None:
        self.frames, self.bank, self.session = frames, bank, session
        self.text = np.full(frames, PAD_ID)
        self.agent = np.repeat(bank.silence[:, None], frames, 1)
        self.user = np.repeat(bank.sine[:, None], frames, 1)
        self.speaking, self.content, self.text_content, self.text_first = (np.zeros(frames, bool) for _ in range(4))
        self.user_words = np.full(frames, -1)
        self.start = 0

    def prompt(self, voice: np.ndarray, text: list[int]) -> None:
        at = voice.shape[1]
        self.agent[:, :at] = voice
        at += PROMPT_SILENCE_FRAMES
        self.text[at : at + len(text)] = text
        self.start = at + len(text) + PROMPT_SILENCE_FRAMES

    def hush(self, offset: int) -> None:
        """Fills the user's rows of the conversation with their background; `offset` picks where in it to begin."""
        count, background = self.frames - self.start, self.session.background
        rows = background[:, (np.arange(count) + offset) % background.shape[1]]
        opening = self.session.opening
        if opening is not None:
            head = min(count, opening.shape[1])
            rows[:, :head] = opening[:, :head]
        self.user[:, self.start :] = rows

    def user_says(self, clip: UserClip, at: int) -> int:
        """Writes the clip from frame `at`; returns the frame after its last sound."""
        end = max(at, min(self.frames, at + clip.codes.shape[1]))
        self.user[:, at:end] = clip.codes[:, : end - at]
        self.user_words[at:end] = clip.words[: end - at]
        return at + clip.codes.shape[1] - clip.tail

    def agent_says(self, clip: AgentClip, at: int, until: int | None = None) -> int:
        """Writes the clip from frame `at` (cut off at `until`); returns the frame after its last sound."""
        end = min(self.frames, at + clip.codes.shape[1], until or self.frames)
        if end <= at:
            return at
        self.agent[:, at:end] = clip.codes[:, : end - at]
        self.speaking[at:end] = True
        extra = {"name": 0, "place": len(clip.place.split()) - 1}
        content = {i for slot, first in clip.slots.items() for i in range(first, first + extra[slot] + 1)}
        for first, last in clip.content_frames(extra):
            self.content[at + first : min(end, at + last)] = True
        cursor = at
        for index, (frame, tokens) in enumerate(clip.words):
            begin = max(cursor, at + frame)
            if begin - 1 >= cursor and begin < end:
                self.text[begin - 1] = END_OF_PADDING_ID
            for cursor, token in enumerate(tokens, begin):
                if cursor < end:
                    self.text[cursor] = token
            if begin < end:
                self.text_content[begin] = index in content
                self.text_first[begin] = index == 0
            cursor += 1
        return end

    def finished(self) -> Dialogue:
        marks = (self.speaking, self.content, self.text_content, self.text_first, self.user_words)
        return Dialogue(self.text, self.agent, self.user, self.start, *marks)


class _Conversation:
    """Who says what, when."""

    def __init__(self, maker: DialogueMaker, draft: _Draft, voice: str, name: str, place: str) -> None:
        self.maker, self.draft, self.rng = maker, draft, maker.rng
        self.persona = (voice, name, place)
        self.left = list(draft.session.clips)
        self.at = draft.start
        self.over = False

    def run(self, opening: Opening) -> None:
        self.draft.hush(self.rng.randrange(1 << 16))
        if opening.kind == "silent":
            self._say("greet", self.at, GREETING_WAIT_FRAMES)
        else:
            self._user_first(opening)
        while self.at < self.draft.frames:
            long = self.over or self.rng.random() < LONG_PAUSE_SHARE
            self.at += self.rng.randint(*(LONG_PAUSE_FRAMES if long else PAUSE_FRAMES))
            if self.at < self.draft.frames:
                self._turn(self._next_clip())

    def _clip(self, kind: str) -> AgentClip | None:
        voice, name, place = self.persona
        return self.maker.agent_clip(voice, kind, name, place)

    def _say(self, kind: str, after: int, wait: tuple[int, int], interruptible: bool = True) -> None:
        """The agent speaks; now and then the user does not let it finish."""
        clip, begin = self._clip(kind), after + self.rng.randint(*wait)
        if clip is None:
            self.at = begin
        elif interruptible and self.rng.random() < INTERRUPTED_SHARE:
            spoken = self.rng.randint(min(6, clip.codes.shape[1]), clip.codes.shape[1])
            self.draft.agent_says(clip, begin, begin + spoken + self.rng.randint(*STOP_FRAMES))
            self.at = begin + spoken
            self._turn(self._next_clip())
        else:
            self.at = self.draft.agent_says(clip, begin)

    def _user_first(self, opening: Opening) -> None:
        if opening.at_once:
            clip = self.left.pop(0)
        else:
            clip = self._next_clip(hello=opening.kind == "hello")
            self.at += self.rng.randint(1, 8)
        self._turn(clip)

    def _turn(self, clip: UserClip) -> None:
        """The user speaks from `at`, the agent answers."""
        ended = self.draft.user_says(clip, self.at)
        if clip.kind == "hello":
            self._say("greet", ended, HELLO_WAIT_FRAMES)
        else:
            self.over = clip.kind == "bye"
            self._say(clip.kind, ended, ANSWER_WAIT_FRAMES, interruptible=not self.over)

    def _next_clip(self, hello: bool = False) -> UserClip:
        """One of this user's sentences, none twice while others are left; "hello" only to open."""
        fitting = [i for i, clip in enumerate(self.left) if (clip.kind == "hello") == hello]
        if not fitting:
            self.left = list(self.draft.session.clips)
            fitting = [i for i, clip in enumerate(self.left) if clip.kind != "hello"] or range(len(self.left))
        return self.left.pop(self.rng.choice(list(fitting)))
