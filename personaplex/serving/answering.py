"""A recorded question answered by the conversation server, beside the live conversations."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from personaplex.serving.hosted import Hosted
from personaplex.text.transcript import Transcript

if TYPE_CHECKING:
    from personaplex.messages import FrameOutput

POLL_SEC = 1.0
SILENCE_SEC = 120.0
"""Outside the queue, a server that sends nothing for so long hangs."""

Progress = Callable[[float, str], None]
"""Called with (share done, 0 to 1; what is being done)."""


@dataclass(frozen=True)
class Answer:
    """A persona's answer to a recording."""

    agent: np.ndarray  # [N] float32
    user: np.ndarray  # [N] float32: what it heard meanwhile
    transcript: Transcript
    complete: bool  # False: cancelled before the end


class QuestionJob:
    """One recorded question. ``run`` blocks; ``cancel`` may come from another thread, also before ``run``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._news: queue.SimpleQueue[ConversationState | tuple[FrameOutput, np.ndarray]] = queue.SimpleQueue()
        self._handle: ConversationHandle | None = None
        self.is_cancelled = self._is_queued = False
        self._began_at: float | None = None

    # -- the server's listener: called from the engine's thread ------------------------------

    def on_state(self, state: ConversationState) -> None:
        self._news.put(state)

    def on_frame(self, output: FrameOutput, heard: np.ndarray, meter: Meter) -> None:
        self._news.put((output, heard))

    # -- the visitor's side -------------------------------------------------------------------

    def cancel(self) -> None:
        """End it now; what was said so far is the answer."""
        self.is_cancelled = True
        if self._handle is not None:
            self._handle.close()

    def run(
        self,
        hosted: Hosted,
        request: ConversationRequest,
        progress: Progress,
        is_wanted: Callable[[], bool] = lambda: True,
        limit_sec: float = math.inf,
    ) -> Answer:
        """Answer ``request.question`` to its end.

        It is cancelled when ``is_wanted`` becomes false, and ``limit_sec`` after it left the queue. Raises a
        PersonaPlexError with the server's own sentence.
        """
        assert request.question is not None, "a recorded question is needed"
        total = max(1, -(-len(request.question) // round(hosted.frame_sec * hosted.sample_rate_hz)))
        transcript = hosted.new_transcript()
        agent: list[np.ndarray] = []
        user: list[np.ndarray] = []
        self._handle = handle = hosted.server.open(request, self)
        try:
            if self.is_cancelled:
                handle.close()
            while True:
                news = self._next(is_wanted, limit_sec)
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
        if not complete and not self.is_cancelled:
            raise CapacityError(news.message) if news.reason is EndReason.REFUSED else PersonaPlexError(news.message)
        return Answer(_joined(agent), _joined(user), transcript, complete)

    def _next(
        self, is_wanted: Callable[[], bool], limit_sec: float
    ) -> ConversationState | tuple[FrameOutput, np.ndarray]:
        silent_since = self._clock()
        while True:
            if not self.is_cancelled and (self._is_late(limit_sec) or not is_wanted()):
                self.cancel()
            try:
                return self._news.get(timeout=min(POLL_SEC, SILENCE_SEC))
            except queue.Empty:
                # A place in the queue may stay the same for long.
                if not self._is_queued and self._clock() - silent_since >= SILENCE_SEC:
                    raise PersonaPlexError("The model did not answer in time. Please try again.") from None

    def _is_late(self, limit_sec: float) -> bool:
        if self._is_queued:
            return False
        self._began_at = self._clock() if self._began_at is None else self._began_at
        return self._clock() - self._began_at > limit_sec


class Line:
    """Lets ``places()`` recorded questions at a time to the server, in order; ``waiting`` more may queue."""

    def __init__(self, places: Callable[[], int], waiting: int) -> None:
        self._places, self._waiting = places, waiting
        self._jobs: deque[QuestionJob] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def place(self, job: QuestionJob, progress: Progress, is_wanted: Callable[[], bool]) -> Iterator[None]:
        """Hold a place for a job once it is its turn; a job that was cancelled or is no longer wanted waits no more.

        Raises CapacityError when the queue is full.
        """
        with self._changed:
            if len(self._jobs) >= self._places() + self._waiting:
                raise CapacityError(
                    f"{len(self._jobs)} recorded questions are being answered or wait already. "
                    "Please try again in a few minutes."
                )
            self._jobs.append(job)
        try:
            while (place := self._place_of(job)) > 0:
                if not is_wanted():
                    job.cancel()
                if job.is_cancelled:
                    break
                progress(*_share_and_words(ConversationState(Phase.QUEUED, place=place), answered=0.0))
                with self._changed:
                    self._changed.wait(POLL_SEC)
            yield
        finally:
            with self._changed:
                self._jobs.remove(job)
                self._changed.notify_all()

    def _place_of(self, job: QuestionJob) -> int:
        """0 or less: it is its turn."""
        with self._changed:
            return self._jobs.index(job) + 1 - self._places()


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
