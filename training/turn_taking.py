"""Turn-taking: who says what and when in the conversation that follows a dialogue's prompt."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from training import domain, orders, sentences
from training.domain import Role
from training.draft import Draft
from training.lm.clips import TAIL_FRAMES, AgentClip, UserClip

GREETING_WAIT_FRAMES = (8, 16)  # before a silent user is greeted
# After the user's last sound. One value and no range: where any of several frames will do, silence is the likeliest
# choice in each of them, and with sharpened sampling the agent would say nothing.
ANSWER_WAIT_FRAMES = 2
LATE_ANSWER_FRAMES, LATE_ANSWER_SHARE = 9, 0.1  # a second chance for what was not understood at once
NOD_WAIT_FRAMES = 3
HELLO_WAIT_FRAMES = 7  # a lone "hello" may go on as a question
ORDER_WAIT_FRAMES = 13  # an order may go on after a pause: people want milk, too
REPEAT_WAIT_FRAMES = 22  # a sentence not understood may also go on after a pause for thought
DOUBT_FRAMES = 6  # after such a sentence, in which the agent must not answer
PAUSE_FRAMES = (4, 24)
LONG_PAUSE_FRAMES = (40, 120)
LONG_PAUSE_SHARE = 0.06
VIGIL_FRAMES = 1000  # a dialogue of so many frames has one silence of minutes
VIGIL_SHARE = (0.5, 0.75)  # of the frames, in that silence
STOP_FRAMES = (2, 3)  # after an interruption the agent falls silent
STOP_WORD_FRAMES = 2  # and begins no more words; sooner, it could not have heard the user
INTERRUPTED_SHARE = 0.4  # of the agent's sentences
INTERRUPTED_AT_FRAMES = (4, 24)  # into the sentence; the second bounds early interruptions alone
EARLY_SHARE = 0.3  # of the interruptions; the others come anywhere in the sentence
STORY_GAP_FRAMES = (5, 14)  # between the sentences of a story
NOD_SHARE = 0.85  # of those gaps in which the agent nods
NEWS_SHARE = 0.15  # of the conversations in which the agent is told another price or hour, once or twice
NEWS_NOW_SHARE = 0.4  # of the pauses there, those in which it is, until it was
ASKED_NEXT_SHARE = 0.7  # of the users who ask for that next
OTHER_ORDER_SHARE = 0.25  # kept of a user's orders where no coffee is sold
OTHER_GOOD_SHARE = 0.15  # kept of a user's questions for the price of goods that the role does not sell


@dataclass(frozen=True)
class Opening:
    """A way to open a conversation, and how often it is drawn."""

    kind: str  # silent, question, hello, story
    at_once: bool
    weight: float


def wait_frames(kind: str) -> int:
    """Frames from the user's last sound to the beginning of the agent's answer."""
    waits = {
        sentences.HELLO: HELLO_WAIT_FRAMES,
        sentences.MUMBLE: REPEAT_WAIT_FRAMES,
        orders.ORDER: ORDER_WAIT_FRAMES,
    }
    return waits.get(kind, ANSWER_WAIT_FRAMES)


class Clips(Protocol):
    """Source of the agent's sentences."""

    rng: random.Random

    def agent_clip(self, voice: str, kind: str, role: Role, told: Mapping[str, str] = {}) -> AgentClip | None:
        """A reading of this kind for this role, and of what the user has `told`; None if there is none."""

    def news(self, voice: str, role: Role) -> tuple[Role, list[int]] | None:
        """The role with another price or hour, and the text that tells it so; None if there is none."""

    def nod(self, voice: str) -> AgentClip | None:
        """A word aside; None if there is none."""


class Conversation:
    """One conversation while it is being written into a draft."""

    def __init__(self, maker: Clips, draft: Draft, voice: str, role: Role) -> None:
        self.maker, self.draft, self.rng = maker, draft, maker.rng
        self.voice, self.role = voice, role
        self.left = self._clips()
        self.at = draft.start
        self.over = False
        self.news = self.rng.randint(1, 2) if self.rng.random() < NEWS_SHARE else 0  # still to be told

    def run(self, opening: Opening) -> None:
        self.draft.hush(self.rng.randrange(1 << 16))
        if opening.kind == "silent":
            self._say(sentences.GREET, self.at + self.rng.randint(*GREETING_WAIT_FRAMES))
        else:
            self._user_first(opening)
        length = self.draft.frames - self.draft.start
        vigil = round(length * self.rng.uniform(*VIGIL_SHARE)) if length >= VIGIL_FRAMES else 0
        while self.at < self.draft.frames:
            long = self.over or self.rng.random() < LONG_PAUSE_SHARE
            self.at += self.rng.randint(*(LONG_PAUSE_FRAMES if long else PAUSE_FRAMES))
            if vigil and self.at < self.draft.frames - vigil and self.rng.random() < 0.5:
                self.at, vigil = self.at + vigil, 0
            asked = None
            if self.news and self.rng.random() < NEWS_NOW_SHARE:
                asked, self.news = self._told(), self.news - 1
            if self.at < self.draft.frames:
                self._turn(asked or self._next_clip())

    def _told(self) -> UserClip | None:
        """The agent is told another price or hour in the pause; returns the user's question for it, if that comes next.

        What is asked from now on gets the new one.
        """
        found = self.maker.news(self.voice, self.role)
        if found is None or self.at + len(found[1]) >= self.draft.frames:
            return None
        kind = "hours" if found[0].hour != self.role.hour else "price"
        self.role = found[0]
        self.at = self.draft.tell(found[1], self.at) + self.rng.randint(*PAUSE_FRAMES)
        asks = [clip for clip in self.left if clip.kind == kind and clip.good in ("", self.role.good)]
        if not asks or self.rng.random() > ASKED_NEXT_SHARE:
            return None
        clip = self.rng.choice(asks)
        self.left.remove(clip)
        return clip

    def _say(self, kind: str, begin: int, interruptible: bool = True, told: Mapping[str, str] = {}) -> None:
        """The agent speaks from frame `begin`; now and then the user does not let it finish."""
        clip = self.maker.agent_clip(self.voice, kind, self.role, told)
        if clip is None or begin >= self.draft.frames:
            self.at = begin
        elif interruptible and self.rng.random() < INTERRUPTED_SHARE:
            first, early = INTERRUPTED_AT_FRAMES
            last = clip.codes.shape[1] - TAIL_FRAMES - 1
            if self.rng.random() < EARLY_SHARE:
                last = min(last, early)
            self.at = begin + self.rng.randint(first, max(first, last))
            self.draft.agent_says(clip, begin, (self.at + STOP_WORD_FRAMES, self.at + self.rng.randint(*STOP_FRAMES)))
            self._turn(self._next_clip())
        else:
            self.at = self.draft.agent_says(clip, begin)

    def _user_first(self, opening: Opening) -> None:
        if opening.at_once:
            self._turn(self.left.pop(0))
            return
        told = [index for index, clip in enumerate(self.left) if clip.kind == sentences.STORY]
        if opening.kind == sentences.STORY and told:  # begun with any of its sentences
            first = self.rng.choice(told)
            clip = self.left[first]
            self.left = [c for index, c in enumerate(self.left) if index > first or c.kind != sentences.STORY]
        else:
            clip = self._next_clip(hello=opening.kind == sentences.HELLO)
        self.at += self.rng.randint(1, 8)
        self._turn(clip)

    def _turn(self, clip: UserClip) -> None:
        """The user speaks from `at`, the agent answers."""
        if clip.kind == sentences.STORY:
            self._story(clip)
            return
        ended = self.draft.user_says(clip, self.at)
        self.over = clip.kind == "bye"
        answer, wait = sentences.answer_kind(clip.kind, self.role, clip.good), wait_frames(clip.kind)
        if clip.kind in (sentences.MUMBLE, orders.ORDER):
            self.draft.held[ended : ended + DOUBT_FRAMES] = True
        if wait == ANSWER_WAIT_FRAMES and self.rng.random() < LATE_ANSWER_SHARE:
            wait = LATE_ANSWER_FRAMES
        self._say(answer, ended + wait, interruptible=not self.over, told=clip.slots)

    def _story(self, clip: UserClip | None) -> None:
        """The user tells something; the agent puts in a word now and then, and leaves the turn where it is."""
        while clip is not None:
            ended = self.draft.user_says(clip, self.at)
            nod = self.maker.nod(self.voice)
            if nod is not None and self.rng.random() < NOD_SHARE:
                self.draft.agent_says(nod, ended + NOD_WAIT_FRAMES)
            self.draft.held[ended : ended + STORY_GAP_FRAMES[1]] = True
            self.at = ended + self.rng.randint(*STORY_GAP_FRAMES)
            clip = next((left for left in self.left if left.kind == sentences.STORY), None)
            if clip is not None:
                self.left.remove(clip)

    def _clips(self) -> list[UserClip]:
        """Sentences that this user may say to this role, in the order they were spoken; at least one."""
        clips, good = self.draft.session.clips, self.role.good
        sold = (good,) if good else domain.trade_of(self.role.place)[1]  # whose price it tells, or might be asked for
        fitting = [clip for clip in clips if clip.good in ("", *sold) or self.rng.random() < OTHER_GOOD_SHARE]
        if not self.role.takes_orders:
            fitting = [c for c in fitting if c.kind != orders.ORDER or self.rng.random() < OTHER_ORDER_SHARE]
        return fitting or list(clips)

    def _next_clip(self, hello: bool = False) -> UserClip:
        """One of this user's sentences, without repeats while others are left; "hello" only to open."""
        fitting = [i for i, clip in enumerate(self.left) if (clip.kind == sentences.HELLO) == hello]
        if not fitting:
            self.left = self._clips()
            fitting = [i for i, clip in enumerate(self.left) if clip.kind != sentences.HELLO]
            fitting = fitting or list(range(len(self.left)))
        return self.left.pop(self.rng.choice(fitting))
