"""Dialogues assembled from encoded recordings, frame by frame.

A dialogue is a role's prompt followed by a conversation that fills the wanted number of frames:
the user is silent and is greeted, or speaks at once; questions and answers with pauses; sometimes
the user interrupts the agent, or tells a story, to which the agent nods; sometimes nobody speaks for long.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from training import agents, domain, orders, sentences
from training.domain import Role
from training.draft import Dialogue, Draft
from training.lm.clips import TAIL_FRAMES, AgentClip, ClipBank, OrderBook, UserClip, UserSession, splice
from training.lm.tokenizer import TextIds
from training.turn_taking import Conversation, Opening, wait_frames

MIN_VOICE_FRAMES = 19  # 1.5 s; a longer voice prompt is cut at random
USUAL_NOD_SHARE = 0.9  # of the nods: with sharpened sampling, of several equally likely words none is said
SPLICED_SHARE = 0.6
ECHO_SHARE = 0.3  # of the dialogues have the agent's voice come back
CAFE_SHARE = 0.85  # of the dialogues with a user who orders are where coffee is sold
PEOPLE_SHARE = 0.35  # of the listening is to people's recordings, where there are some
DRILLED_CAFE_SHARE = 0.2  # of the drills are where coffee is sold
DRILLED_ORDER_SHARE = 0.5  # of what is asked there
DRILLED_KINDS = ("greet", "name", "place", "price", "price", "hours", "hours")  # facts are harder to copy than names
STRANGE_KINDS = ("name", "name", "place", "price", "hours")  # for roles with made-up names
DRILLED_SHARE = 0.7  # of a drill's questions are of these kinds
TOLD_SHARE = 0.9  # of the prices asked in a drill are in the prompt
DRILLED_FACTS_SHARE = 0.7  # of the drilled roles have all facts
STRANGE_SHARE = 0.35  # of these have made-up names, places and goods
SPELLED_SHARE = 0.15  # of the dialogues have an agent whose name is spelled
SPELLED_RECITED_SHARE = 0.35  # of the recitals
RECITED_KINDS: tuple[str, ...] = ("greet", "name", "name", "place", "price", orders.ORDER)
SAYABLE_TRIES = 30
FACT_SLOTS = (("price", "price"), ("hours", "hour"))
SAID_SLOTS = (("greet", "name"), ("greet", "place"), ("name", "name"), ("place", "place"), *FACT_SLOTS)

OPENINGS = (
    Opening("silent", False, 0.35),
    Opening("question", True, 0.22),
    Opening("question", False, 0.1),
    Opening("hello", True, 0.04),
    Opening("hello", False, 0.07),
    Opening("story", True, 0.16),
    Opening("story", False, 0.06),
)

FIRST_QUESTION_WEIGHTS = {kind: turn.weight for kind, turn in sentences.TURNS.items()} | {
    sentences.MUMBLE: 2.0,
    sentences.PARROT: 1.0,
    orders.ORDER: 4.0,
}
PERSON_SHARE = 0.5  # of those who order at once are recorded people, where there are some
LATE_PERSON_SHARE = 0.12  # of those who speak later


class DialogueMaker:
    def __init__(self, bank: ClipBank, ids: TextIds, seed: int = 0) -> None:
        self.bank, self.ids = bank, ids
        self.rng = random.Random(seed)
        self._index: dict[tuple[int, str], dict[str, list[AgentClip]]] = {}
        self.agent_voices = sorted({voice for voice, _ in bank.agent})
        self.marks = frozenset(ids.processor.piece_to_id(mark) for mark in ".,?!")
        self.spelled = {voice: self._spelled_names(voice) for voice in self.agent_voices}
        usual = ids.word(sentences.USUAL_NOD)
        self.usual_nods = {
            voice: [nod for nod in bank.agent[voice, sentences.NOD] if nod.words[0][1] == usual]
            for voice in self.agent_voices
        }
        self.order_books = {voice: OrderBook(bank.agent.get((voice, orders.ORDER), [])) for voice in self.agent_voices}
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
        """A user who speaks all the time while the agent is silent: for the listening loss."""
        rng = self.rng
        people = self.bank.people if rng.random() < PEOPLE_SHARE else []
        draft = self._draft(frames, rng.choice(people or self.bank.users))
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
        role = told = domain.random_role(rng, cafe=rng.random() < DRILLED_CAFE_SHARE)
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
            kind, wanted = rng.choice(STRANGE_KINDS if strange else DRILLED_KINDS), {}
            if rng.random() < listening_share:
                asked = self._drilled(kind, told, strange)
                if asked.kind == sentences.STORY or strange and asked.kind == orders.ORDER:
                    continue
                at = draft.user_says(asked, at) + wait_frames(asked.kind)
                kind, wanted = sentences.answer_kind(asked.kind, role, asked.good), asked.slots
            elif sentences.answer_kind(kind, role) == sentences.UNKNOWN:
                continue
            clip = self.agent_clip(voice, kind, role, wanted)
            if clip is not None:
                own = [slot for slot in clip.slots if slot not in wanted]  # the others are the user's own words
                for slot in [slot for slot in own if told.value(slot) != role.value(slot)]:
                    clip = clip.refilled(slot, told.value(slot), self.ids)
                at = draft.agent_says(self._hurried(clip), at)
            at += rng.randint(0, 6)
        return draft.finished()

    def _drilled(self, kind: str, role: Role, strange: bool) -> UserClip:
        """What is asked in a drill: mostly this kind; an order as often where coffee is sold."""
        if role.takes_orders and not strange and self.rng.random() < DRILLED_ORDER_SHARE:
            return self._asked(orders.ORDER, "")
        drilled = strange or self.rng.random() < DRILLED_SHARE
        return self._asked(kind if drilled else "", role.good, named=not strange)

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
            clip = self.agent_clip(voice, rng.choice(kinds), said, orders.drawn(rng))
            if clip is not None:
                at = draft.agent_says(clip, at)
            at += rng.randint(0, 3)
        return draft.finished()

    def _spelled_names(self, voice: str) -> list[str]:
        """The spelled names that this voice has said in every kind of sentence that wants a name."""
        said = ({clip.values["name"] for clip in self.bank.agent[voice, kind]} for kind in sentences.NAMING_KINDS)
        return sorted(set.intersection(*said) & set(domain.SPELLED_NAMES))

    def _now_and_then_spelled(self, role: Role, voice: str, share: float) -> Role | None:
        """The role under a spelled name, with probability `share`; else None."""
        if self.spelled[voice] and self.rng.random() < share:
            return replace(role, name=self.rng.choice(self.spelled[voice]))
        return None

    def _draft(self, frames: int, session: UserSession) -> Draft:
        return Draft(frames, self.bank, session, self.marks)

    def _voice(self) -> str:
        """One of the agent's voices."""
        return self.rng.choices(self.agent_voices, [agents.VOICES[voice].drawn for voice in self.agent_voices])[0]

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
        """The same words at about one token per frame, without sound."""
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
        role = self._sayable(voice, session.good, cafe=session.orders and rng.random() < CAFE_SHARE)
        role = self._now_and_then_spelled(role, voice, SPELLED_SHARE) or role
        draft = self._draft(frames, session)
        draft.echoes = rng.random() < ECHO_SHARE
        prompt = rng.choice(self.bank.voices[voice])
        prompt = prompt[:, : rng.randint(min(MIN_VOICE_FRAMES, prompt.shape[1]), prompt.shape[1])]
        draft.prompt(prompt, self.ids.text(domain.tagged(domain.role_prompt(role, rng))))
        Conversation(self, draft, voice, role).run(opening)
        return draft.finished()

    def _session(self, opening: Opening) -> UserSession:
        if not opening.at_once:
            return self._perhaps_a_person(self._later_with.get(opening.kind) or self.later, LATE_PERSON_SHARE)
        if opening.kind == "hello":
            return self.rng.choice(self._by_first.get(sentences.HELLO, self.at_once))
        if opening.kind == sentences.STORY:
            return self.rng.choice(self._by_first.get(sentences.STORY, self.at_once))
        kinds = [kind for kind in self._by_first if kind in FIRST_QUESTION_WEIGHTS]
        weights = [FIRST_QUESTION_WEIGHTS[kind] for kind in kinds]
        return self._perhaps_a_person(self._by_first[self.rng.choices(kinds, weights)[0]], PERSON_SHARE)

    def _perhaps_a_person(self, sessions: list[UserSession], share: float) -> UserSession:
        """One of these; people's recordings, which are few, as often as `share` says."""
        wanted = self.rng.random() < share
        return self.rng.choice([s for s in sessions if s.is_person == wanted] or sessions)

    def nod(self, voice: str) -> AgentClip | None:
        """A word aside, the usual one more often than not; None if there is none."""
        nods = self.bank.agent[voice, sentences.NOD]
        if self.rng.random() < USUAL_NOD_SHARE:
            nods = self.usual_nods[voice] or nods
        return self.rng.choice(nods) if nods else None

    def _sayable(self, voice: str, good: str = "", cafe: bool = False) -> Role:
        """A role all of whose facts this voice has said: a voice with few readings lacks some."""
        for _ in range(SAYABLE_TRIES):
            role = domain.random_role(self.rng, good, cafe)
            if all(self._has_said(voice, kind, slot, role.value(slot)) for kind, slot in SAID_SLOTS):
                break
        return role

    def _has_said(self, voice: str, kind: str, slot: str, value: str) -> bool:
        clips = self.bank.agent[voice, kind]
        return not value or not clips or bool(self._matching(clips, slot, value))

    def agent_clip(self, voice: str, kind: str, role: Role, told: Mapping[str, str] = {}) -> AgentClip | None:
        """A reading of this kind for this role, spliced from several more often than not; None if there is none.

        `told`: what the user orders or wants repeated.
        """
        if kind == orders.ORDER:
            return self.order_books[voice].reading(self.rng, told)
        clips, rng = self.bank.agent[voice, kind], self.rng
        slots = next(iter(clips)).slots if clips else {}
        if not slots:
            return rng.choice(clips) if clips else None
        clip, following = None, ""
        for slot in sorted(slots, key=slots.__getitem__, reverse=True):
            matching = self._matching(clips, slot, told[slot] if slot in told else role.value(slot))
            if not matching:
                return None
            chosen = rng.choice(matching)
            clip = chosen if clip is None else splice(chosen, clip, following)
            following = slot
        assert clip is not None  # there is a slot
        return splice(rng.choice(clips), clip, following) if rng.random() < SPLICED_SHARE else clip

    def news(self, voice: str, role: Role) -> tuple[Role, list[int]] | None:
        """The role with another price or hour, one that this voice has said, and the text that tells it, if any."""
        for _ in range(SAYABLE_TRIES):
            new, told = domain.changed(self.rng, role)
            if all(self._has_said(voice, kind, slot, new.value(slot)) for kind, slot in FACT_SLOTS):
                return new, self.ids.text(domain.tagged(told))
        return None

    def _matching(self, clips: list[AgentClip], slot: str, value: str) -> list[AgentClip]:
        key = (id(clips), slot)
        if key not in self._index:
            self._index[key] = {}
            for clip in clips:
                self._index[key].setdefault(clip.values[slot], []).append(clip)
        return self._index[key].get(value, [])
