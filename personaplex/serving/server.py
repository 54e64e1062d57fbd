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
from concurrent.futures import Future
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
from personaplex.serving.metrics import HEALTHY_AFTER_SEC, Metrics, ServerRecord
from personaplex.serving.served_conversation import FrameFacts, ServedConversation
from personaplex.serving.tellings import Telling, Tellings, over
from personaplex.text.prompt import wrap_told

if TYPE_CHECKING:
    from personaplex.engine.engine import Snapshot
    from personaplex.messages import FrameOutput
    from personaplex.session.session import Conversation, Session

log = logging.getLogger(__name__)

IDLE_TURN_SEC = 0.1  # how often clocks are looked at while nobody speaks
MAX_PREPARATION_WAIT_SEC = 0.4  # a prompt goes on so often at least, however busy the live ones are
TURN_SHARE = 0.9  # of a frame, for a step and a piece of a prompt together
CLOSE_WITHIN_SEC = 4.0

Batch = dict[ServedConversation, tuple[np.ndarray, float]]
"""Conversations with a frame to answer → the frame ([frame_samples] float32) and the time it came."""


class DuplexServer:
    """Runs conversations on one session. Create it once; ``close`` it before the process ends."""

    def __init__(
        self, session: Session, limits: Limits, metrics: Metrics | None = None, *,
        clock: Callable[[], float] = time.perf_counter, start: bool = True,
    ):  # fmt: skip
        """``start=False`` leaves the turns to the caller."""
        self.session, self.limits = session, limits
        self.metrics = metrics or Metrics()
        self._record = ServerRecord(self.metrics, limits.slots)
        self.metrics.watch(self.status)
        self._clock = clock
        model = session.loaded.config
        silent = (model.lm.existing_text_padding_id, END_OF_PADDING_ID)
        self._facts = FrameFacts(model.mimi.frame_samples, model.mimi.frame_sec, silent)
        self._changed = threading.Condition()
        # Guarded by the condition: what other threads leave for the engine's.
        self._arrived: list[ServedConversation] = []
        self._tellings = Tellings()
        self._news = False
        self._stopping = False
        # The engine's thread alone.
        self._waiting: deque[ServedConversation] = deque()
        self._running: list[ServedConversation] = []
        self._last_piece_at = 0.0
        self._piece_sec = 0.0  # how long one takes
        self._thread = threading.Thread(target=self._run, name="duplex", daemon=True)
        if start:
            self._thread.start()

    # -- from any thread ---------------------------------------------------------------------

    def open(self, request: ConversationRequest, listener: Listener) -> Handle:
        """Ask for a conversation: it is let in, queued or refused, all of which ``on_state`` tells."""
        served = ServedConversation(request, listener, self.limits, self._facts)
        with self._changed:
            over = self._stopping
            if not over:
                self._arrived.append(served)
                self._wake()
        if over:
            served.is_closed = True
            served.report(ConversationState(Phase.ENDED, reason=EndReason.SHUTDOWN, message=STOPPING))
        return Handle(self, served)

    def close(self) -> None:
        """End every conversation with a message to its visitor, then the thread."""
        with self._changed:
            self._stopping = True
            self._wake()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_WITHIN_SEC)
            if self._thread.is_alive():
                log.error("the engine's thread did not end within %s s", CLOSE_WITHIN_SEC)

    def status(self) -> ServerStatus:
        return self._record.status(len(self._running), len(self._waiting), self._stopping)

    def _wake(self) -> None:
        self._news = True
        self._changed.notify()

    def _push(self, served: ServedConversation, pcm: np.ndarray) -> None:
        if pcm.shape != (self._facts.frame_samples,) or not np.isfinite(pcm).all():
            served.wanted_end = (EndReason.FAILED, "The page sent invalid audio. Press Start again.")
            return
        with self._changed:
            if not served.is_live or served.is_recorded_question:
                return
            served.last_sound_at = self._clock()
            if not served.inbox.put(np.asarray(pcm, np.float32), served.last_sound_at):
                self._record.dropped()
            self._wake()

    def _tell(self, served: ServedConversation, text: str) -> Future[int]:
        telling = Telling(served, text, Future())
        try:
            wrap_told(text)  # what is no text costs the engine's thread no time
            with self._changed:
                self._tellings.add(telling)
                self._wake()
        except InputError as error:
            telling.future.set_exception(error)
        return telling.future

    def _ask_to_end(self, served: ServedConversation, reason: EndReason, message: str) -> None:
        with self._changed:
            served.wanted_end = served.wanted_end or (reason, message)
            self._wake()

    # -- the engine's thread -----------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                if self.turn():
                    continue
            except Exception as error:  # a bug of ours: no visitor may be left without an end
                log.exception("a turn of the engine's thread failed")
                self._record.failed(type(error).__name__)
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
        for served in self._running:
            served.watch_time(now)
        self._end_finished()
        self._let_in()
        told = self._tell_next()
        stepped = self._step_frames()
        return self._prepare_piece(now, stepped) or stepped or told

    def _take_arrivals(self) -> None:
        with self._changed:
            arrived, self._arrived = self._arrived, []
        for served in arrived:
            # The free slots are part of the room: several may arrive before anyone is let in.
            room = self.limits.waiting + self.limits.slots - len(self._running)
            if len(self._waiting) >= room:
                self._end(
                    served, EndReason.REFUSED,
                    f"All {self.limits.slots} places are taken and {len(self._waiting)} visitors wait already. "
                    "Please try again in a few minutes.",
                )  # fmt: skip
            else:
                self._waiting.append(served)

    def _let_in(self) -> None:
        while self._waiting and len(self._running) < self.limits.slots:
            served = self._waiting.popleft()
            asked = served.request
            served.preparation = self.session.prepare_in_pieces(
                voice=asked.voice, text=asked.text, truncate_text=asked.truncate_text
            )
            self._running.append(served)
            served.report(ConversationState(Phase.PREPARING))
        for place, served in enumerate(self._waiting, start=1):
            served.report(ConversationState(Phase.QUEUED, place=place))

    def _end_finished(self) -> None:
        for served in [*self._running, *self._waiting]:
            if served.wanted_end is not None:
                self._end(served, *served.wanted_end)

    def _end_everyone(self, reason: EndReason, message: str) -> None:
        for served in [*self._running, *self._waiting]:
            self._end(served, reason, message)

    def _end(self, served: ServedConversation, reason: EndReason, message: str) -> None:
        """Free everything a conversation holds, then tell it."""
        if served in self._running:
            self._running.remove(served)
        if served in self._waiting:
            self._waiting.remove(served)
        try:
            if served.preparation is not None:
                served.preparation.close()
            if served.conversation is not None:
                if reason is EndReason.FAILED:
                    served.conversation.abandon()
                else:
                    served.conversation.close()
        except Exception:
            log.exception("the slot of a conversation could not be cleaned")
        served.preparation = served.conversation = None
        self._record.ended(reason, served.frames)
        served.report(ConversationState(Phase.ENDED, reason=reason, message=message))
        with self._changed:
            left = self._tellings.close(served)
        for telling in left:
            telling.answer(over)

    # -- told text ---------------------------------------------------------------------------

    def _tell_next(self) -> bool:
        """Tell one text to a live conversation; everybody's microphone waits for it."""
        with self._changed:
            telling = self._tellings.take()
            if telling is None:
                return False
            held = [each.inbox for each in self._running]
            for inbox in held:
                inbox.hold()
        told, text = telling.served, telling.text
        error = telling.answer(lambda: _live(told).tell(text))
        if error is not None and not isinstance(error, PersonaPlexError):
            self._fail([told], error)
        with self._changed:
            for inbox in held:
                inbox.release()
        return True

    # -- frames ------------------------------------------------------------------------------

    def _step_frames(self) -> bool:
        """One step for everybody who has a frame."""
        batch: Batch = {}
        with self._changed:
            for served in self._running:
                frame = served.next_frame(self._clock()) if served.can_step else None
                if frame is not None:
                    batch[served] = frame
        if not batch:
            return False
        started = self._clock()
        answers = self._answers(batch)
        now = self._clock()
        step_ms = (now - started) * 1000
        self._record.stepped(step_ms)
        for served, output in answers.items():
            if not np.isfinite(output.pcm).all():
                self._fail([served], FloatingPointError("the model's sound is not finite"))
                continue
            served.take_answer(output, *batch[served], now, step_ms)
            if served.frames == self._facts.count(HEALTHY_AFTER_SEC):
                self._record.worked()
        return True

    def _answers(self, batch: Batch) -> dict[ServedConversation, FrameOutput]:
        """Step all together. A step that broke off may have moved any of them, so all of them fail."""
        try:
            outputs = self.session.step_together({_live(served): pcm for served, (pcm, _) in batch.items()})
        except InputError as error:  # a frame was refused, before anybody moved
            if len(batch) == 1:
                self._fail(batch, error)
                return {}
            log.warning("a step of %d conversations was refused (%s); trying each alone", len(batch), error)
            alone = [self._answers({served: frame}) for served, frame in batch.items()]
            return {served: output for answers in alone for served, output in answers.items()}
        except Exception as error:
            self._fail(batch, error)
            return {}
        return {served: outputs[_live(served)] for served in batch}

    def _prepare_piece(self, turn_began_at: float, stepped: bool) -> bool:
        """Let the longest waiting prompt go on by a piece; live conversations come first.

        After a step only where the piece, too, is done before those who were stepped have their next frame.
        """
        found = ((served, served.preparation) for served in self._running if served.preparation is not None)
        preparing, work = next(found, (None, None))
        if preparing is None or work is None:
            return False
        began_at = self._clock()
        is_late = began_at - turn_began_at + self._piece_sec > TURN_SHARE * self._facts.frame_sec
        if stepped and is_late and began_at - self._last_piece_at < MAX_PREPARATION_WAIT_SEC:
            return False
        try:
            done, total = next(work)
            preparing.report(ConversationState(Phase.PREPARING, done=done, total=total))
        except StopIteration as finished:
            self._begin(preparing, finished.value)
        except PersonaPlexError as error:
            self._end(preparing, EndReason.REFUSED, str(error))
        except Exception as error:
            self._fail([preparing], error)
        self._last_piece_at = self._clock()
        self._piece_sec = max(self._last_piece_at - began_at, self._piece_sec / 2)
        return True

    def _begin(self, served: ServedConversation, snapshot: Snapshot) -> None:
        served.preparation = None
        try:
            served.equip()
        except PersonaPlexError as error:
            self._end(served, EndReason.REFUSED, f"{error}.")
            return
        try:
            served.conversation = self.session.start(snapshot, served.request.sampling)
        except Exception as error:
            self._fail([served], error)
            return
        with self._changed:
            served.begin(self._clock())

    def _fail(self, failing: Iterable[ServedConversation], error: Exception) -> None:
        """These conversations cannot go on; the others can."""
        failing = list(failing)
        log.error("conversations failed: %d", len(failing), exc_info=error)
        self._record.failed(type(error).__name__)
        for served in failing:
            self._end(served, EndReason.FAILED, _failed_sentence(error))


class Handle:
    """A conversation from outside."""

    def __init__(self, server: DuplexServer, served: ServedConversation):
        self._server, self._served = server, served

    def push(self, pcm: np.ndarray) -> None:
        self._server._push(self._served, pcm)

    def tell(self, text: str) -> Future[int]:
        return self._server._tell(self._served, text)

    def close(self, message: str = "") -> None:
        self._server._ask_to_end(self._served, EndReason.STOPPED, message or STOPPED)


def _live(served: ServedConversation) -> Conversation:
    assert served.conversation is not None, "only live conversations are stepped"
    return served.conversation


def _failed_sentence(error: Exception) -> str:
    """A sentence for the visitor; details are in the log."""
    out_of_memory = isinstance(error, (CapacityError, MemoryError)) or "out of memory" in str(error).lower()
    if out_of_memory:
        return "The machine ran out of memory. Please try again in a minute, or with a shorter persona."
    return "The model stopped working in this conversation. Please press Start again."
