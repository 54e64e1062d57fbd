"""Many conversations on one engine: the thread that owns it, the queue in front of it, and who is served when.

No asyncio and no WebRTC here. ``open``, ``push`` and ``close`` come from any thread; everything else, the
listeners' calls included, happens on the engine's thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from personaplex.config import END_OF_PADDING_ID
from personaplex.errors import CapacityError, InputError, PersonaPlexError
from personaplex.messages import (
    STOPPED,
    STOPPING,
    ConversationRequest,
    ConversationState,
    EndReason,
    Limits,
    Listener,
    Phase,
    ServerStatus,
)
from personaplex.serving.metrics import Metrics
from personaplex.serving.talk import FrameFacts, Talk

if TYPE_CHECKING:
    from personaplex.messages import FrameOutput
    from personaplex.session.session import Session

log = logging.getLogger(__name__)

IDLE_TURN_SEC = 0.1  # how often clocks are looked at while nobody speaks
MAX_PREPARATION_WAIT_SEC = 0.4  # a prompt goes on so often at least, however busy the live ones are
CLOSE_WITHIN_SEC = 4.0
UNHEALTHY_AFTER_FAILURES = 3
STATUS_STEPS = 1000


class DuplexServer:
    """Runs conversations on one session. Create it once; ``close`` it before the process ends."""

    def __init__(
        self, session: Session, limits: Limits, metrics: Metrics | None = None, *,
        clock: Callable[[], float] = time.perf_counter, start: bool = True,
    ):  # fmt: skip
        """``start=False`` leaves the turns to the caller."""
        self.session, self.limits = session, limits
        self.metrics = metrics or Metrics()
        self.metrics.watch(self.status)
        self._clock = clock
        model = session.loaded.config
        silent = (model.lm.existing_text_padding_id, END_OF_PADDING_ID)
        self._facts = FrameFacts(model.mimi.frame_samples, model.mimi.frame_sec, silent)
        self._changed = threading.Condition()
        # Guarded by the condition: what other threads leave for the engine's.
        self._arrived: list[Talk] = []
        self._news = False
        self._stopping = False
        # The engine's thread alone.
        self._waiting: deque[Talk] = deque()
        self._running: list[Talk] = []
        self._last_piece_at = 0.0
        self._step_ms: deque[float] = deque(maxlen=STATUS_STEPS)
        self._dropped = 0
        self._errors = 0
        self._failures_in_a_row = 0
        self._trouble = ""
        self._thread = threading.Thread(target=self._run, name="duplex", daemon=True)
        if start:
            self._thread.start()

    # -- from any thread ---------------------------------------------------------------------

    def open(self, request: ConversationRequest, listener: Listener) -> Handle:
        """Ask for a conversation: it is let in, queued or refused, all of which ``on_state`` tells."""
        talk = Talk(request, listener, self.limits, self._facts)
        with self._changed:
            over = self._stopping
            if not over:
                self._arrived.append(talk)
                self._wake()
        if over:
            talk.tell(ConversationState(Phase.ENDED, reason=EndReason.SHUTDOWN, message=STOPPING))
        return Handle(self, talk)

    def close(self) -> None:
        """Tell every conversation, and end the thread."""
        with self._changed:
            self._stopping = True
            self._wake()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_WITHIN_SEC)
            if self._thread.is_alive():
                log.error("the engine's thread did not end within %s s", CLOSE_WITHIN_SEC)

    def status(self) -> ServerStatus:
        steps = np.array(list(self._step_ms) or [0.0])
        median, slowest = np.percentile(steps, [50, 99])
        return ServerStatus(
            running=len(self._running),
            waiting=len(self._waiting),
            slots=self.limits.slots,
            step_p50_ms=round(float(median), 1),
            step_p99_ms=round(float(slowest), 1),
            dropped_frames=self._dropped,
            errors=self._errors,
            healthy=not self._stopping and self._failures_in_a_row < UNHEALTHY_AFTER_FAILURES,
            message="stopping" if self._stopping else self._trouble,
        )

    def _wake(self) -> None:
        self._news = True
        self._changed.notify()

    def _push(self, talk: Talk, pcm: np.ndarray) -> None:
        if pcm.shape != (self._facts.frame_samples,) or not np.isfinite(pcm).all():
            talk.wanted_end = (EndReason.FAILED, "The page sent invalid audio. Press Start again.")
            return
        with self._changed:
            if not talk.is_live or talk.is_recorded_question:
                return
            talk.last_sound_at = self._clock()
            if not talk.inbox.put(np.asarray(pcm, np.float32), talk.last_sound_at):
                self._dropped += 1
                self.metrics.dropped_frames.inc()
            self._wake()

    def _ask_to_end(self, talk: Talk, reason: EndReason, message: str) -> None:
        with self._changed:
            talk.wanted_end = talk.wanted_end or (reason, message)
            self._wake()

    # -- the engine's thread -----------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                if self.turn():
                    continue
            except Exception as error:  # a mistake of ours: nobody may be left hanging
                log.exception("a turn of the engine's thread failed")
                self._note_failure(error)
                self._end_everyone(EndReason.FAILED, _failed_sentence(error))
            with self._changed:
                if self._stopping and not (self._waiting or self._running or self._arrived):
                    return
                if not self._news:
                    self._changed.wait(IDLE_TURN_SEC if self._running or self._waiting else None)
                self._news = False

    def turn(self) -> bool:
        """One round over everybody; false when there was nothing to do."""
        self._take_arrivals()
        if self._stopping:
            self._end_everyone(EndReason.SHUTDOWN, STOPPING)
            return False
        now = self._clock()
        for talk in self._running:
            talk.watch_time(now)
        self._end_finished()
        self._let_in()
        stepped = self._step_frames()
        return self._prepare_piece(stepped) or stepped

    def _take_arrivals(self) -> None:
        with self._changed:
            arrived, self._arrived = self._arrived, []
        for talk in arrived:
            # The free slots are part of the room: several may arrive before anyone is let in.
            room = self.limits.waiting + self.limits.slots - len(self._running)
            if len(self._waiting) >= room:
                self._end(
                    talk, EndReason.REFUSED,
                    f"All {self.limits.slots} places are taken and {len(self._waiting)} visitors wait already. "
                    "Please try again in a few minutes.",
                )  # fmt: skip
            else:
                self._waiting.append(talk)

    def _let_in(self) -> None:
        while self._waiting and len(self._running) < self.limits.slots:
            talk = self._waiting.popleft()
            asked = talk.request
            talk.preparation = self.session.prepare_in_pieces(
                voice=asked.voice, text=asked.text, truncate_text=asked.truncate_text
            )
            self._running.append(talk)
            talk.tell(ConversationState(Phase.PREPARING))
        for place, talk in enumerate(self._waiting, start=1):
            talk.tell(ConversationState(Phase.QUEUED, place=place))

    def _end_finished(self) -> None:
        for talk in [*self._running, *self._waiting]:
            if talk.wanted_end is not None:
                self._end(talk, *talk.wanted_end)

    def _end_everyone(self, reason: EndReason, message: str) -> None:
        for talk in [*self._running, *self._waiting]:
            self._end(talk, reason, message)

    def _end(self, talk: Talk, reason: EndReason, message: str) -> None:
        """Free everything a conversation holds, then tell it."""
        if talk in self._running:
            self._running.remove(talk)
        if talk in self._waiting:
            self._waiting.remove(talk)
        try:
            if talk.preparation is not None:
                talk.preparation.close()
            if talk.conversation is not None:
                if reason is EndReason.FAILED:
                    talk.conversation.abandon()
                else:
                    talk.conversation.close()
        except Exception:
            log.exception("the slot of a conversation could not be cleaned")
        talk.preparation = talk.conversation = None
        self.metrics.ended.labels(reason.value).inc()
        log.info("a conversation ended: %s", reason.value)
        talk.tell(ConversationState(Phase.ENDED, reason=reason, message=message))

    # -- frames ------------------------------------------------------------------------------

    def _step_frames(self) -> bool:
        """One step for everybody who has a frame."""
        batch: dict[Talk, tuple[np.ndarray, float]] = {}
        with self._changed:
            for talk in self._running:
                frame = talk.next_frame(self._clock()) if talk.is_live and talk.wanted_end is None else None
                if frame is not None:
                    batch[talk] = frame
        if not batch:
            return False
        started = self._clock()
        answers = self._answers(batch)
        now = self._clock()
        step_ms = (now - started) * 1000
        self._step_ms.append(step_ms)
        self.metrics.step_seconds.observe(now - started)
        for talk, output in answers.items():
            if not np.isfinite(output.pcm).all():
                self._fail([talk], FloatingPointError("the model's sound is not finite"))
                continue
            talk.take_answer(output, *batch[talk], now, step_ms)
        return True

    def _answers(self, batch: dict[Talk, tuple[np.ndarray, float]]) -> dict[Talk, FrameOutput]:
        """Step all together. A step that broke off may have moved any of them, so that none can go on."""
        try:
            outputs = self.session.step_together({talk.conversation: pcm for talk, (pcm, _) in batch.items()})
        except InputError as error:  # a frame was refused, before anybody moved
            if len(batch) == 1:
                self._fail(batch, error)
                return {}
            log.warning("a step of %d conversations was refused (%s); trying each alone", len(batch), error)
            alone = [self._answers({talk: frame}) for talk, frame in batch.items()]
            return {talk: output for answers in alone for talk, output in answers.items()}
        except Exception as error:
            self._fail(batch, error)
            return {}
        self._failures_in_a_row, self._trouble = 0, ""
        return {talk: outputs[talk.conversation] for talk in batch}

    def _prepare_piece(self, stepped: bool) -> bool:
        """Let the longest waiting prompt go on by a piece; live conversations come first."""
        preparing = next((talk for talk in self._running if talk.preparation is not None), None)
        if preparing is None:
            return False
        if stepped and self._clock() - self._last_piece_at < MAX_PREPARATION_WAIT_SEC:
            return False
        try:
            done, total = next(preparing.preparation)
            preparing.tell(ConversationState(Phase.PREPARING, done=done, total=total))
        except StopIteration as finished:
            self._begin(preparing, finished.value)
        except PersonaPlexError as error:
            self._end(preparing, EndReason.REFUSED, str(error))
        except Exception as error:
            self._fail([preparing], error)
        self._last_piece_at = self._clock()
        return True

    def _begin(self, talk: Talk, snapshot) -> None:
        talk.preparation = None
        try:
            talk.conversation = self.session.start(snapshot, talk.request.sampling)
        except Exception as error:
            self._fail([talk], error)
            return
        with self._changed:
            talk.begin(self._clock())

    def _fail(self, talks: Iterable[Talk], error: Exception) -> None:
        """These conversations cannot go on; the others can."""
        talks = list(talks)
        log.error("conversations failed: %d", len(talks), exc_info=error)
        self._note_failure(error)
        for talk in talks:
            self._end(talk, EndReason.FAILED, _failed_sentence(error))

    def _note_failure(self, error: Exception) -> None:
        self._errors += 1
        self.metrics.errors.labels(type(error).__name__).inc()
        self._failures_in_a_row += 1
        self._trouble = f"the model failed {self._failures_in_a_row} times in a row ({type(error).__name__})"


class Handle:
    """A conversation from outside."""

    def __init__(self, server: DuplexServer, talk: Talk):
        self._server, self._talk = server, talk

    def push(self, pcm: np.ndarray) -> None:
        self._server._push(self._talk, pcm)

    def close(self, message: str = "") -> None:
        self._server._ask_to_end(self._talk, EndReason.STOPPED, message or STOPPED)


def _failed_sentence(error: Exception) -> str:
    """What a visitor is told; details are in the log."""
    out_of_memory = isinstance(error, (CapacityError, MemoryError)) or "out of memory" in str(error).lower()
    if out_of_memory:
        return "The machine ran out of memory. Please try again in a minute, or with a shorter persona."
    return "The model stopped working in this conversation. Please press Start again."
