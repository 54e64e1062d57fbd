"""Puts dialogues together from encoded recordings, frame by frame.

A dialogue is a role's prompt followed by a conversation that fills the wanted number of frames:
the user is silent and is greeted, or speaks at once; questions and answers with pauses; sometimes
the user interrupts the agent, or tells a story, to which the agent nods; sometimes nobody speaks for long.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np

from personaplex.config import END_OF_PADDING_ID
from training import domain, sentences
from training.domain import Role
from training.lm.clips import TAIL_FRAMES, AgentClip, ClipBank, UserClip, UserSession, splice
from training.lm.tokenizer import TextIds

PAD_ID = 3
PROMPT_SILENCE_FRAMES = 6
MIN_VOICE_FRAMES = 19  # 1.5 s; a longer voice prompt is cut at random

GREETING_WAIT_FRAMES = (8, 16)  # how long a silent user is waited for
# After the user's last sound. One frame and no span: where any of several frames will do, silence is the likeliest
# choice in each, and as sampling is sharpened the agent would say nothing.
ANSWER_WAIT_FRAMES = 2
LATE_ANSWER_FRAMES, LATE_ANSWER_SHARE = 9, 0.1  # … or then, so that what was not understood at once still may be
NOD_WAIT_FRAMES = 3
HELLO_WAIT_FRAMES = 7  # a lone "hello" may go on as a question
REPEAT_WAIT_FRAMES = 22  # what was not understood may go on, too, after a pause for thought
DOUBT_FRAMES = 6  # after it, in which nothing is to be answered
PAUSE_FRAMES = (4, 24)
LONG_PAUSE_FRAMES = (40, 120)
STOP_FRAMES = (2, 3)  # how soon an interrupted agent falls silent
STOP_WORD_FRAMES = 2  # … and begins no more words: sooner, it could not have heard why
STOPPED_FRAMES = 6  # of its silence then, those that its sound is taught like speech
LONG_PAUSE_SHARE = 0.06
INTERRUPTED_SHARE = 0.4  # of what the agent says
INTERRUPTED_AT_FRAMES = (4, 24)  # of what it says
EARLY_SHARE = 0.3  # of the interruptions, those within these frames; the others anywhere
STORY_GAP_FRAMES = (5, 14)  # between the sentences of a story
NOD_SHARE = 0.85  # of those, that the agent says a word in
USUAL_NOD_SHARE = 0.9  # of these words, the usual one: sampling is sharpened, and of several as likely none is
SPLICED_SHARE = 0.6
VOICE_WEIGHTS = {"slt": 1.6, "kal16": 1.2}  # those whose names are understood least are heard most; the others 1
DRILLED_KINDS = ("greet", "name", "place", "price", "price", "hours", "hours")  # facts are harder to copy than names
STRANGE_KINDS = ("name", "name", "place", "price", "hours")  # … of the roles with names unheard of
DRILLED_SHARE = 0.7  # of a drill's questions, those of these kinds
TOLD_SHARE = 0.9  # of the prices a drilled role is asked, those that it was told
OTHER_GOOD_SHARE = 0.15  # of a user's questions for the price of what the role does not sell, those that are left in
DRILLED_FACTS_SHARE = 0.7  # of the drilled roles, those that tell everything
STRANGE_SHARE = 0.35  # … and of these, those told of names, places and goods unheard of
SPELLED_SHARE = 0.15  # of the dialogues, those whose agent has a name that is spelled
SPELLED_RECITED_SHARE = 0.35  # … of the recitals
RECITED_KINDS = ("greet", "name", "name", "place", "price")


@dataclass(frozen=True)
class Opening:
    """How a conversation starts, and how often."""

    kind: str  # silent, question, hello, story
    at_once: bool
    weight: float


OPENINGS = (
    Opening("silent", False, 0.35),
    Opening("question", True, 0.22),
    Opening("question", False, 0.1),
    Opening("hello", True, 0.04),
    Opening("hello", False, 0.07),
    Opening("story", True, 0.16),
    Opening("story", False, 0.06),
)


FIRST_QUESTION_WEIGHTS = {kind: turn.weight for kind, turn in sentences.TURNS.items()} | {sentences.MUMBLE: 2.0}


def _wait(kind: str) -> int:
    """How many frames after the user's last sound the agent begins to answer."""
    return {sentences.HELLO: HELLO_WAIT_FRAMES, sentences.MUMBLE: REPEAT_WAIT_FRAMES}.get(kind, ANSWER_WAIT_FRAMES)


@dataclass
class Dialogue:
    """`text`: [T]; `agent`, `user`: [8, T]; int64. The conversation starts at `prompt_frames`.

    `speaking`: [T] bool, the agent's speech; `stopped`: [T] bool, where it has just been interrupted;
    `content`: [T] bool, what fills its slots;
    `text_content`: [T] bool, their text tokens; `text_first`: [T] bool, the tokens a sentence begins with.
    `held`: [T] bool, where the agent keeps a silence in which it might have spoken: interrupted, or told a story.
    `user_words`: [T] int64, the number of the word the user is saying, or -1.
    """

    text: np.ndarray
    agent: np.ndarray
    user: np.ndarray
    prompt_frames: int
    speaking: np.ndarray
    stopped: np.ndarray
    content: np.ndarray
    text_content: np.ndarray
    text_first: np.ndarray
    held: np.ndarray
    user_words: np.ndarray


class DialogueMaker:
    def __init__(self, bank: ClipBank, ids: TextIds, seed: int = 0) -> None:
        self.bank, self.ids = bank, ids
        self.rng = random.Random(seed)
        self.agent_voices = sorted({voice for voice, _ in bank.agent})
        self.marks = frozenset(ids.processor.piece_to_id(mark) for mark in ".,?!")
        self.spelled = {voice: self._spelled_names(voice) for voice in self.agent_voices}
        usual = ids.word(sentences.USUAL_NOD)
        self.usual_nods = {
            voice: [nod for nod in bank.agent[voice, sentences.NOD] if nod.words[0][1] == usual]
            for voice in self.agent_voices
        }
        self.at_once = [s for s in bank.users if s.opening is None]
        self.later = [s for s in bank.users if s.opening is not None]
        self._later_with = {
            kind: [s for s in self.later if any(clip.kind == kind for clip in s.clips)]
            for kind in (sentences.HELLO, sentences.STORY)
        }
        self._by_first: dict[str, list[UserSession]] = {}
        for session in self.at_once:
            self._by_first.setdefault(session.clips[0].kind, []).append(session)
        self._clips_by_good: dict[str, list[UserClip]] = {}
        self._clips = [clip for session in bank.users for clip in session.clips]
        self._clips_by_kind: dict[str, list[UserClip]] = {}
        for clip in self._clips:
            self._clips_by_kind.setdefault(clip.kind, []).append(clip)
            self._clips_by_good.setdefault(clip.good, []).append(clip)

    def monologue(self, frames: int) -> Dialogue:
        """A user who speaks all the time while the agent is silent, to learn to listen from."""
        rng = self.rng
        draft = self._draft(frames, rng.choice(self.bank.users))
        draft.hush(rng.randrange(1 << 16))
        clips, at = draft.session.clips, rng.randint(0, 8)
        while at < frames:
            at = draft.user_says(rng.choice(clips), at) + rng.randint(0, 6)
        return draft.finished()

    def drill(self, frames: int, listening_share: float) -> Dialogue:
        """A role's prompt, then sentences close together; `listening_share` of them answer a question.

        The agent's side is text alone.

        Where names and facts are this dense, copying them from the prompt is learned soon, and so is listening.
        """
        rng = self.rng
        role = told = domain.random_role(rng)
        strange = False
        if rng.random() < DRILLED_FACTS_SHARE:
            role = told = domain.with_facts(rng, role.name, role.place)
            if strange := rng.random() < STRANGE_SHARE:
                told = domain.as_stranger(rng, role)
        voice = self._voice()
        draft = self._draft(frames, rng.choice(self.later or self.bank.users))
        heard = rng.choice(self.bank.voices[voice])[:, : rng.randint(1, 8)]
        draft.prompt(heard, self.ids.text(domain.tagged(domain.role_prompt(told, rng))))
        draft.hush(rng.randrange(1 << 16))
        at = draft.start + rng.randint(0, 6)
        while at < frames:
            kind = rng.choice(STRANGE_KINDS if strange else DRILLED_KINDS)
            if rng.random() < listening_share:
                drilled = strange or rng.random() < DRILLED_SHARE
                asked = self._asked(kind if drilled else "", told.good, named=not strange)
                if asked.kind == sentences.STORY:
                    continue
                at = draft.user_says(asked, at) + _wait(asked.kind)
                kind = sentences.answer_kind(asked.kind, role, asked.good)
            elif sentences.answer_kind(kind, role) == sentences.UNKNOWN:
                continue
            clip = self.agent_clip(voice, kind, role)
            if clip is not None:
                for slot in [slot for slot in clip.slots if told.value(slot) != role.value(slot)]:
                    clip = clip.refilled(slot, told.value(slot), self.ids)
                at = draft.agent_says(self._hurried(clip), at)
            at += rng.randint(0, 6)
        return draft.finished()

    def recital(self, frames: int) -> Dialogue:
        """The agent alone, sentence after sentence with any names and places: to learn to pronounce them.

        What it says has nothing to do with its prompt, so only the sound may be learned from. A spelled name is that
        of the prompt: its pieces come one a frame, too late for the sound that they begin with.
        """
        rng = self.rng
        voice = self._voice()
        draft = self._draft(frames, rng.choice(self.later or self.bank.users))
        heard = rng.choice(self.bank.voices[voice])[:, : rng.randint(8, MIN_VOICE_FRAMES)]
        role, kinds = domain.random_role(rng), RECITED_KINDS
        if spelled := self._now_and_then_spelled(role, voice, SPELLED_RECITED_SHARE):
            role, kinds = spelled, sentences.NAMING_KINDS
        draft.prompt(heard, self.ids.text(domain.tagged(domain.role_prompt(role))))
        draft.hush(rng.randrange(1 << 16))
        at = draft.start + rng.randint(0, 4)
        while at < frames:
            other = domain.random_role(rng)
            said = domain.with_facts(rng, role.name if spelled else other.name, other.place)
            clip = self.agent_clip(voice, rng.choice(kinds), said)
            if clip is not None:
                at = draft.agent_says(clip, at)
            at += rng.randint(0, 3)
        return draft.finished()

    def _spelled_names(self, voice: str) -> list[str]:
        """The spelled names that this voice has said in every kind of sentence that wants a name."""
        said = ({clip.values["name"] for clip in self.bank.agent[voice, kind]} for kind in sentences.NAMING_KINDS)
        return sorted(set.intersection(*said) & set(domain.SPELLED_NAMES))

    def _now_and_then_spelled(self, role: Role, voice: str, share: float) -> Role | None:
        """The role with a spelled name in `share` of the cases, else None."""
        if self.spelled[voice] and self.rng.random() < share:
            return replace(role, name=self.rng.choice(self.spelled[voice]))
        return None

    def _draft(self, frames: int, session: UserSession) -> _Draft:
        return _Draft(frames, self.bank, session, self.marks)

    def _voice(self) -> str:
        """One of the agent's voices."""
        return self.rng.choices(self.agent_voices, [VOICE_WEIGHTS.get(voice, 1.0) for voice in self.agent_voices])[0]

    def _asked(self, kind: str, good: str, named: bool = True) -> UserClip:
        """A user's sentence of this kind, or of any where `kind` is "" or nobody asks that.

        A price is more often than not that of this `good`, where one is given; where it is not `named`, of nothing.
        """
        said = self._clips_by_kind.get(kind, self._clips)
        if kind == "price" and not named:
            said = [clip for clip in said if not clip.good] or said
        elif kind == "price" and good and self.rng.random() < TOLD_SHARE:
            said = self._clips_by_good.get(good, said)
        return self.rng.choice(said)

    def _hurried(self, clip: AgentClip) -> AgentClip:
        """The same words as fast as one token a frame allows, give or take, and no sound."""
        words, at = [], 1
        for _, tokens in clip.words:
            words.append((at, tokens))
            at += len(tokens) + self.rng.randint(0, 2)
        silence = np.repeat(self.bank.silence[:, None], at + TAIL_FRAMES, 1)
        return AgentClip(silence, words, clip.slots, clip.values)

    def make(self, frames: int) -> Dialogue:
        """A new dialogue of exactly `frames` frames."""
        rng = self.rng
        opening = rng.choices(OPENINGS, [o.weight for o in OPENINGS])[0]
        voice = self._voice()
        session = self._session(opening)
        role = domain.random_role(rng, session.good)
        role = self._now_and_then_spelled(role, voice, SPELLED_SHARE) or role
        draft = self._draft(frames, session)
        prompt = rng.choice(self.bank.voices[voice])
        prompt = prompt[:, : rng.randint(min(MIN_VOICE_FRAMES, prompt.shape[1]), prompt.shape[1])]
        draft.prompt(prompt, self.ids.text(domain.tagged(domain.role_prompt(role, rng))))
        _Conversation(self, draft, voice, role).run(opening)
        return draft.finished()

    def _session(self, opening: Opening) -> UserSession:
        if not opening.at_once:
            return self.rng.choice(self._later_with.get(opening.kind) or self.later)
        if opening.kind == "hello":
            return self.rng.choice(self._by_first.get(sentences.HELLO, self.at_once))
        if opening.kind == sentences.STORY:
            return self.rng.choice(self._by_first.get(sentences.STORY, self.at_once))
        kinds = [kind for kind in self._by_first if kind in FIRST_QUESTION_WEIGHTS]
        weights = [FIRST_QUESTION_WEIGHTS[kind] for kind in kinds]
        return self.rng.choice(self._by_first[self.rng.choices(kinds, weights)[0]])

    def nod(self, voice: str) -> AgentClip | None:
        """A word aside, the usual one more often than not; None if there is none."""
        nods = self.bank.agent[voice, sentences.NOD]
        if self.rng.random() < USUAL_NOD_SHARE:
            nods = self.usual_nods[voice] or nods
        return self.rng.choice(nods) if nods else None

    def agent_clip(self, voice: str, kind: str, role: Role) -> AgentClip | None:
        """A reading of this kind for this role, spliced from several more often than not; None if there is none."""
        clips, rng = self.bank.agent[voice, kind], self.rng
        slots = next(iter(clips)).slots if clips else {}
        if not slots:
            return rng.choice(clips) if clips else None
        clip, following = None, ""
        for slot in sorted(slots, key=slots.get, reverse=True):
            matching = self._matching(clips, slot, role.value(slot))
            if not matching:
                return None
            chosen = rng.choice(matching)
            clip = chosen if clip is None else splice(chosen, clip, following)
            following = slot
        return splice(rng.choice(clips), clip, following) if rng.random() < SPLICED_SHARE else clip

    def _matching(self, clips: list[AgentClip], slot: str, value: str) -> list[AgentClip]:
        index = self.__dict__.setdefault("_index", {})
        key = (id(clips), slot)
        if key not in index:
            index[key] = {}
            for clip in clips:
                index[key].setdefault(clip.values[slot], []).append(clip)
        return index[key].get(value, [])


class _Draft:
    """The token rows of a dialogue while it is being written."""

    def __init__(self, frames: int, bank: ClipBank, session: UserSession, marks: frozenset[int]) -> None:
        """`marks`: the tokens that are punctuation."""
        self.frames, self.bank, self.session, self.marks = frames, bank, session, marks
        self.text = np.full(frames, PAD_ID)
        self.agent = np.repeat(bank.silence[:, None], frames, 1)
        self.user = np.repeat(bank.sine[:, None], frames, 1)
        self.speaking, self.stopped, self.content = np.zeros((3, frames), bool)
        self.text_content, self.text_first, self.held = np.zeros((3, frames), bool)
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
        quiet = max(0, min(self.frames - end, clip.quiet.shape[1]))
        self.user[:, end : end + quiet] = clip.quiet[:, :quiet]
        self.user_words[at:end] = clip.words[: end - at]
        return at + clip.codes.shape[1] - clip.tail

    def agent_says(self, clip: AgentClip, at: int, until: tuple[int, int] | None = None) -> int:
        """Writes the clip from frame `at`; returns the frame after its last sound.

        `until`: the frames from which on no word begins, and nothing sounds.
        """
        self.held[at:] = False  # what was kept silent before ends here
        whole = min(self.frames, at + clip.codes.shape[1])
        last_word, end = (min(whole, cut) for cut in until) if until else (whole, whole)
        if end <= at:
            return at
        self.held[last_word:whole] = True
        self.agent[:, at:end] = clip.codes[:, : end - at]
        self.speaking[at:end] = True
        self.stopped[end : min(whole, end + STOPPED_FRAMES)] = True
        content = clip.content_words()
        for first, last in clip.content_frames():
            self.content[at + first : min(end, at + last)] = True
        cursor = at
        for index, (frame, tokens) in enumerate(clip.words):
            begin = max(cursor, at + frame)
            if begin >= last_word:
                break
            if begin - 1 >= cursor:
                self.text[begin - 1] = END_OF_PADDING_ID
            for cursor, token in enumerate(tokens, begin):
                if cursor < end:
                    self.text[cursor] = token
            if index in content:
                told = sum(token not in self.marks for token in tokens)
                self.text_content[begin : min(end, begin + told)] = True
            self.text_first[begin] = index == 0
            cursor += 1
        return end

    def finished(self) -> Dialogue:
        heard = (self.speaking, self.stopped, self.content)
        written = (self.text_content, self.text_first, self.held)
        return Dialogue(self.text, self.agent, self.user, self.start, *heard, *written, self.user_words)


class _Conversation:
    """Who says what, when."""

    def __init__(self, maker: DialogueMaker, draft: _Draft, voice: str, role: Role) -> None:
        self.maker, self.draft, self.rng = maker, draft, maker.rng
        self.voice, self.role = voice, role
        self.left = self._clips()
        self.at = draft.start
        self.over = False

    def run(self, opening: Opening) -> None:
        self.draft.hush(self.rng.randrange(1 << 16))
        if opening.kind == "silent":
            self._say(sentences.GREET, self.at + self.rng.randint(*GREETING_WAIT_FRAMES))
        else:
            self._user_first(opening)
        while self.at < self.draft.frames:
            long = self.over or self.rng.random() < LONG_PAUSE_SHARE
            self.at += self.rng.randint(*(LONG_PAUSE_FRAMES if long else PAUSE_FRAMES))
            if self.at < self.draft.frames:
                self._turn(self._next_clip())

    def _say(self, kind: str, begin: int, interruptible: bool = True) -> None:
        """The agent speaks from frame `begin`; now and then the user does not let it finish."""
        clip = self.maker.agent_clip(self.voice, kind, self.role)
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
        answer, wait = sentences.answer_kind(clip.kind, self.role, clip.good), _wait(clip.kind)
        if clip.kind == sentences.MUMBLE:
            self.draft.held[ended : ended + DOUBT_FRAMES] = True
        if wait == ANSWER_WAIT_FRAMES and self.rng.random() < LATE_ANSWER_SHARE:
            wait = LATE_ANSWER_FRAMES
        self._say(answer, ended + wait, interruptible=not self.over)

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
        """What this user may say to this role, in the order it was spoken; at least one sentence."""
        clips, good = self.draft.session.clips, self.role.good
        sold = (good,) if good else domain.trade_of(self.role.place)[1]  # whose price it tells, or might be asked for
        fitting = [clip for clip in clips if clip.good in ("", *sold) or self.rng.random() < OTHER_GOOD_SHARE]
        return fitting or list(clips)

    def _next_clip(self, hello: bool = False) -> UserClip:
        """One of this user's sentences, none twice while others are left; "hello" only to open."""
        fitting = [i for i, clip in enumerate(self.left) if (clip.kind == sentences.HELLO) == hello]
        if not fitting:
            self.left = self._clips()
            fitting = [i for i, clip in enumerate(self.left) if clip.kind != sentences.HELLO] or range(len(self.left))
        return self.left.pop(self.rng.choice(list(fitting)))
