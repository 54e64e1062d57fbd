"""One conversation as the engine's thread serves it: its microphone, its greeting, its state and its time limits."""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from personaplex.audio.activity import is_loud
from personaplex.audio.cleaning import Cleaner
from personaplex.audio.frames import split_frames
from personaplex.messages import (
    ConversationRequest,
    ConversationState,
    EndReason,
    Limits,
    Listener,
    Meter,
    Phase,
    minutes,
)
from personaplex.serving.inbox import Inbox

if TYPE_CHECKING:
    from personaplex.engine.engine import Snapshot
    from personaplex.messages import FrameOutput
    from personaplex.session.session import Conversation

log = logging.getLogger(__name__)

TALKING_FOR_SEC = 0.4
GREETING_QUIET_SEC = 0.6
GREETING_LIMIT_SEC = 8.0
METER_FRAMES = 25


@dataclass(frozen=True)
class FrameFacts:
    """Constants of the model's frames that the server needs."""

    frame_samples: int
    frame_sec: float
    silent_text_ids: tuple[int, ...]  # text tokens that say nothing

    def count(self, seconds: float) -> int:
        """Frames that ``seconds`` need."""
        return math.ceil(seconds / self.frame_sec - 1e-9)


class GreetingGate:
    """Lets the model hear silence until its greeting is over.

    Over means: it said a word, and then for 0.6 s neither text nor speech came; or 8 s have passed.
    """

    def __init__(self, facts: FrameFacts, closed: bool):
        self._quiet_frames = facts.count(GREETING_QUIET_SEC)
        self._left = facts.count(GREETING_LIMIT_SEC) if closed else 0
        self._spoke = False
        self._quiet = 0

    @property
    def is_closed(self) -> bool:
        return self._left > 0

    def hear(self, pcm: np.ndarray) -> np.ndarray:
        return np.zeros_like(pcm) if self.is_closed else pcm

    def said(self, text: bool, loud: bool) -> None:
        """Take note of a frame of the agent."""
        if not self.is_closed:
            return
        self._left -= 1
        self._spoke = self._spoke or text
        self._quiet = 0 if text or loud else self._quiet + 1
        if self._spoke and self._quiet >= self._quiet_frames:
            self._left = 0


class ServedConversation:
    """One conversation. The engine's thread calls everything here; the server guards the inbox."""

    def __init__(self, request: ConversationRequest, listener: Listener, limits: Limits, facts: FrameFacts):
        self.request, self.listener, self.limits, self.facts = request, listener, limits, facts
        self.state = ConversationState(Phase.QUEUED)  # nothing was told yet
        self.inbox = Inbox(limits.max_waiting_frames)
        self.wanted_end: tuple[EndReason, str] | None = None  # set from any thread
        self.is_closed = False  # guarded by the server, as the inbox is: nothing can be told any more
        self.preparation: Generator[tuple[int, int], None, Snapshot] | None = None
        self.conversation: Conversation | None = None  # of the session, once it is live
        self.last_sound_at = 0.0
        self._question = iter(split_frames(request.question)) if request.question is not None else iter(())
        self._cleaner: Cleaner | None = None
        self._gate = GreetingGate(facts, request.wait_for_greeting and request.question is None)
        self._ends_at = math.inf
        self._loud_for = 0
        self._step_ms: deque[float] = deque(maxlen=METER_FRAMES)
        self._answer_ms: deque[float] = deque(maxlen=METER_FRAMES)
        self._frames = 0

    def equip(self) -> None:
        """Make what the request asks for; raises PersonaPlexError where this machine cannot."""
        if self.request.clean_microphone:
            self._cleaner = Cleaner()

    @property
    def frames(self) -> int:
        """Frames answered so far."""
        return self._frames

    @property
    def is_recorded_question(self) -> bool:
        return self.request.question is not None

    @property
    def is_live(self) -> bool:
        return self.state.is_live

    @property
    def can_step(self) -> bool:
        """Whether it may hear, say and be told something."""
        return self.is_live and self.wanted_end is None

    def begin(self, now: float) -> None:
        """The prompt is done: time runs from here, and sound from before is thrown away."""
        self.inbox.clear()
        self.last_sound_at = now
        if not self.is_recorded_question:
            self._ends_at = now + self.limits.conversation_sec
        self.report(ConversationState(Phase.LISTENING))

    def next_frame(self, now: float) -> tuple[np.ndarray, float] | None:
        """The frame that the model hears next and when it came, if one waits."""
        if self.is_recorded_question:
            frame = next(self._question, None)
            if frame is None:
                self.wanted_end = self.wanted_end or (
                    EndReason.FINISHED,
                    "The whole recording is answered. Choose another one to go on.",
                )
            return None if frame is None else (self._cleaned(frame), now)
        found = self.inbox.take()
        return None if found is None else (self._gate.hear(self._cleaned(found[0])), found[1])

    def _cleaned(self, pcm: np.ndarray) -> np.ndarray:
        return pcm if self._cleaner is None else self._cleaner.hear(pcm)

    def take_answer(self, output: FrameOutput, heard: np.ndarray, came_at: float, now: float, step_ms: float) -> None:
        """Pass a frame's answer to the listener; update the phase, the greeting and the meter."""
        text = output.text_token not in self.facts.silent_text_ids
        loud = is_loud(output.pcm)
        self._gate.said(text, loud)
        if self._cleaner is not None:
            self._cleaner.said(output.pcm)
        self._frames += 1
        self._step_ms.append(step_ms)
        self._answer_ms.append((now - came_at) * 1000)
        self._loud_for = self.facts.count(TALKING_FOR_SEC) if loud or text else max(0, self._loud_for - 1)
        phase = Phase.TALKING if self._loud_for else Phase.LISTENING
        if phase is not self.state.phase:
            self.report(replace(self.state, phase=phase, left_sec=self._left_sec(now)))
        self._guarded(self.listener.on_frame, output, heard, self.meter)

    @property
    def meter(self) -> Meter:
        return Meter(
            statistics.median(self._step_ms) if self._step_ms else 0.0,
            statistics.median(self._answer_ms) if self._answer_ms else 0.0,
            self._frames,
            self.inbox.dropped,
        )

    def watch_time(self, now: float) -> None:
        """Announce the end when it is near, and end what is over."""
        if not self.is_live or self.is_recorded_question or self.wanted_end is not None:
            return
        if now >= self._ends_at:
            limit = minutes(self.limits.conversation_sec)
            self.wanted_end = (EndReason.TIME_LIMIT, f"That was the limit of {limit}. Press Start to talk again.")
        elif now - self.last_sound_at >= self.limits.idle_sec:
            self.wanted_end = (EndReason.IDLE, "No sound comes from your microphone any more. Press Start again.")
        elif self.state.left_sec is None and self._left_sec(now) is not None:
            self.report(replace(self.state, left_sec=self._left_sec(now)))

    def _left_sec(self, now: float) -> float | None:
        left = self._ends_at - now
        return max(0.0, left) if left <= self.limits.notice_sec else None

    def report(self, state: ConversationState) -> None:
        """Move to a state and tell the listener; the same state again, or one after the end, is ignored."""
        if state == self.state or self.state.phase is Phase.ENDED:
            return
        self.state = state
        self._guarded(self.listener.on_state, state)

    def _guarded(self, call: Callable[..., None], *arguments: object) -> None:
        """A listener's failure is its own: the conversation ends, the engine's thread goes on."""
        try:
            call(*arguments)
        except Exception:
            log.exception("a listener failed; its conversation ends")
            self.wanted_end = (EndReason.FAILED, "The page's side of the conversation failed. Press Start again.")
