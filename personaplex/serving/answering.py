"""A recorded question answered through the server, beside the live conversations."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from personaplex.errors import CapacityError, PersonaPlexError
from personaplex.messages import ConversationRequest, ConversationState, EndReason, Meter, Phase
from personaplex.serving.host import Hosted
from personaplex.text.transcript import Transcript

if TYPE_CHECKING:
    from personaplex.messages import FrameOutput

SILENCE_SEC = 120.0
"""Out of the queue, the server says something more often than that, or it hangs."""

Progress = Callable[[float, str], None]
"""Told a share, 0 to 1, and what is being done."""


@dataclass(frozen=True)
class Answer:
    """What a persona said to a recording."""

    agent: np.ndarray  # [N] float32
    user: np.ndarray  # [N] float32: what it heard meanwhile
    transcript: Transcript
    complete: bool  # false: cancelled


class Answering:
    """One question on its way. ``run`` blocks; ``cancel`` comes from another thread."""

    def __init__(self, hosted: Hosted, request: ConversationRequest) -> None:
        assert request.question is not None, "a recorded question is needed"
        self._hosted, self._request = hosted, request
        self._news: queue.SimpleQueue[ConversationState | tuple[FrameOutput, np.ndarray]] = queue.SimpleQueue()
        self._handle = None
        self._cancelled = self._is_queued = False

    # -- the server's listener: called from the engine's thread ------------------------------

    def on_state(self, state: ConversationState) -> None:
        self._news.put(state)

    def on_frame(self, output: FrameOutput, heard: np.ndarray, meter: Meter) -> None:
        self._news.put((output, heard))

    # -- the visitor's side -------------------------------------------------------------------

    def cancel(self) -> None:
        """Stop where it is; what was said so far is the answer."""
        self._cancelled = True
        if self._handle is not None:
            self._handle.close()

    def run(self, progress: Progress) -> Answer:
        """Until the whole question is answered. Raises a PersonaPlexError with the server's own sentence."""
        total = max(1, -(-len(self._request.question) // round(self._hosted.frame_sec * self._hosted.sample_rate_hz)))
        transcript, agent, user = self._hosted.new_transcript(), [], []
        self._handle = self._hosted.server.open(self._request, self)
        try:
            if self._cancelled:
                self._handle.close()
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
                progress(0.1 + 0.9 * len(agent) / total, f"answering: {len(agent) * self._hosted.frame_sec:.0f} s")
        finally:
            self._handle.close()
        complete = news.reason is EndReason.FINISHED
        if not complete and not self._cancelled:
            raise CapacityError(news.message) if news.reason is EndReason.REFUSED else PersonaPlexError(news.message)
        return Answer(_joined(agent), _joined(user), transcript, complete)

    def _next(self) -> ConversationState | tuple[FrameOutput, np.ndarray]:
        while True:
            try:
                return self._news.get(timeout=SILENCE_SEC)
            except queue.Empty:
                if not self._is_queued:  # in the queue nothing is said as long as the place stays
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
