"""A recorded question answered by the conversation server, beside the live conversations."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from personaplex.errors import CapacityError, PersonaPlexError
from personaplex.messages import (
    ConversationHandle,
    ConversationRequest,
    ConversationState,
    EndReason,
    Meter,
    Phase,
)
from personaplex.serving.host import Hosted
from personaplex.text.transcript import Transcript

if TYPE_CHECKING:
    from personaplex.messages import FrameOutput

SILENCE_SEC = 120.0
"""Outside the queue, a server that sends nothing for so long hangs."""

Progress = Callable[[float, str], None]
"""Called with (share done, 0 to 1; what is being done)."""


@dataclass(frozen=True)
class Answer:
    """What a persona said to a recording."""

    agent: np.ndarray  # [N] float32
    user: np.ndarray  # [N] float32: what it heard meanwhile
    transcript: Transcript
    complete: bool  # False: cancelled before the end


class QuestionJob:
    """One recorded question. ``run`` blocks; ``cancel`` may come from another thread, also before ``run``."""

    def __init__(self) -> None:
        self._news: queue.SimpleQueue[ConversationState | tuple[FrameOutput, np.ndarray]] = queue.SimpleQueue()
        self._handle: ConversationHandle | None = None
        self._cancelled = self._is_queued = False

    # -- the server's listener: called from the engine's thread ------------------------------

    def on_state(self, state: ConversationState) -> None:
        self._news.put(state)

    def on_frame(self, output: FrameOutput, heard: np.ndarray, meter: Meter) -> None:
        self._news.put((output, heard))

    # -- the visitor's side -------------------------------------------------------------------

    def cancel(self) -> None:
        """End it now; what was said so far is the answer."""
        self._cancelled = True
        if self._handle is not None:
            self._handle.close()

    def run(self, hosted: Hosted, request: ConversationRequest, progress: Progress) -> Answer:
        """Answer ``request.question`` to its end. Raises a PersonaPlexError with the server's own sentence."""
        assert request.question is not None, "a recorded question is needed"
        total = max(1, -(-len(request.question) // round(hosted.frame_sec * hosted.sample_rate_hz)))
        transcript = hosted.new_transcript()
        agent: list[np.ndarray] = []
        user: list[np.ndarray] = []
        self._handle = handle = hosted.server.open(request, self)
        try:
            if self._cancelled:
                handle.close()
            while True:
                news = self._next()
                if isinstance(news, ConversationState):
                    self._is_queued = news.phase is Phase.QUEUED
                    if news.phase is Phase.ENDED:
                        break
                    progress(*_share_and_words(news, len(agent) / total))
                    continue
                output, heard = news
                transcript.push(output.text_token, len(agent))
                agent.append(output.pcm)
                user.append(heard)
                progress(0.1 + 0.9 * len(agent) / total, f"answering: {len(agent) * hosted.frame_sec:.0f} s")
        finally:
            handle.close()
        complete = news.reason is EndReason.FINISHED
        if not complete and not self._cancelled:
            raise CapacityError(news.message) if news.reason is EndReason.REFUSED else PersonaPlexError(news.message)
        return Answer(_joined(agent), _joined(user), transcript, complete)

    def _next(self) -> ConversationState | tuple[FrameOutput, np.ndarray]:
        while True:
            try:
                return self._news.get(timeout=SILENCE_SEC)
            except queue.Empty:
                if not self._is_queued:  # a place in the queue may stay the same for long
                    raise PersonaPlexError("The model did not answer in time. Please try again.") from None


def _joined(frames: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([*frames, np.zeros(0, np.float32)])


def _share_and_words(state: ConversationState, answered: float) -> tuple[float, str]:
    if state.phase is Phase.QUEUED and not state.place:
        return 0.0, "waiting for a GPU"
    if state.phase is Phase.QUEUED:
        return 0.0, f"waiting for a free place: number {state.place} in the queue"
    if state.phase is Phase.PREPARING:
        return 0.1 * state.done / max(1, state.total), "preparing the persona"
    return 0.1 + 0.9 * answered, "answering"
