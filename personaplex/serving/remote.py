"""Conversations that another process holds: the page's side of their lines.

To the page this is any other server (``messages.ConversationServer``). Where a call runs, and what its failures mean
to a visitor, is a subclass's: on a borrowed GPU (``zerogpu.ZeroGpuServer``), on a cluster (``personaplex.cluster``).
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import replace

import numpy as np

from personaplex.audio.frames import SAMPLE_RATE_HZ
from personaplex.errors import InputError, PromptError
from personaplex.messages import (
    OVER,
    STOPPED,
    STOPPING,
    ConversationRequest,
    ConversationState,
    EndReason,
    FrameOutput,
    Limits,
    Listener,
    Meter,
    Phase,
    ServerStatus,
)
from personaplex.serving.exchange import Exchange, Expected
from personaplex.serving.inbox import Inbox
from personaplex.serving.layout import Kind, decode_frame, decode_state, decode_told, encode_sound
from personaplex.serving.line import Line
from personaplex.serving.metrics import HEALTHY_AFTER_SEC, Metrics, ServerRecord
from personaplex.text.prompt import wrap_told

log = logging.getLogger(__name__)

DIAL_WITHIN_SEC = 0.2
"""After its call has ended, a worker that did not dial does not any more."""
CLOSE_WITHIN_SEC = 5.0
SEND_WITHIN_SEC = 3.0
BEAT_SEC = 1.0
WORKER_FAILED = "WorkerFailed"
"""Kind of error in the metrics: the worker said that its model failed."""

Work = Generator[str, None, None]
"""One conversation elsewhere, from its prompt to its end; it yields while it is held, and closing it ends it."""


class RemoteServer:
    """Opens conversations that run elsewhere."""

    full = "All places are taken. Please try again in a few minutes."
    gone = "The machine that held your conversation is gone. Please press Start again."

    def __init__(self, limits: Limits, metrics: Metrics | None = None, *, exchange: Exchange):
        self.limits, self.exchange = limits, exchange
        self.metrics = metrics or Metrics()
        self.record = ServerRecord(self.metrics, limits.slots)
        self._lock = threading.Lock()
        self._calls: set[RemoteCall] = set()
        self._is_closed = False
        self.metrics.watch(self.status)

    def open(self, request: ConversationRequest, listener: Listener) -> RemoteCall:
        call = self.new_call(request, listener)
        with self._lock:
            room = not self._is_closed and len(self._calls) < self.limits.slots + self.limits.waiting
            if room:
                self._calls.add(call)
        if room:
            context = contextvars.copy_context()
            threading.Thread(target=context.run, args=[call.run], name="remote-call", daemon=True).start()
        else:
            call.end(EndReason.REFUSED, STOPPING if self._is_closed else self.full)
        return call

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            calls = list(self._calls)
        for call in calls:
            call.end(EndReason.SHUTDOWN, STOPPING)
        self.exchange.close()

    def status(self) -> ServerStatus:
        with self._lock:
            running = sum(call.is_up for call in self._calls)
            waiting = len(self._calls) - running
            stopping = self._is_closed
        return self.record.status(running, waiting, stopping)

    def forget(self, call: RemoteCall) -> None:
        """The call's place is free."""
        with self._lock:
            self._calls.discard(call)

    # -- a subclass's own ----------------------------------------------------------------------

    def new_call(self, request: ConversationRequest, listener: Listener) -> RemoteCall:
        raise NotImplementedError

    def explain(self, error: Exception, is_up: bool) -> tuple[EndReason, str]:
        """A call's error as its visitor is told; ``is_up``: the worker had begun."""
        log.exception("a call failed")
        return EndReason.FAILED, "The conversation stopped working. Please press Start again."


class RemoteCall:
    """One conversation: a handle for the page, the near end of a line to the worker."""

    def __init__(self, server: RemoteServer, request: ConversationRequest, listener: Listener):
        self._server, self._listener = server, listener
        self.request = request
        self._changed = threading.Condition()
        self._inbox = Inbox(server.limits.max_waiting_frames)
        self._state = ConversationState(Phase.QUEUED)  # nothing was told yet
        self._dropped = self._frames = 0
        self._to_tell: deque[tuple[str, Future[int]]] = deque()
        self._telling: deque[Future[int]] = deque()  # sent, not answered
        self.is_up = False

    # -- the page ----------------------------------------------------------------------------

    def push(self, pcm: np.ndarray) -> None:
        with self._changed:
            if self._state.is_live:
                self._inbox.put(np.asarray(pcm, np.float32), time.monotonic())
                self._changed.notify()

    def tell(self, text: str) -> Future[int]:
        future: Future[int] = Future()
        try:
            wrapped = wrap_told(text)  # what the worker would refuse, the line need not carry
        except PromptError as error:
            future.set_exception(error)
            return future
        with self._changed:
            self._to_tell.append((wrapped, future))
            self._changed.notify()
        if self.is_over:
            self._refuse_tellings()
        return future

    def close(self, message: str = "") -> None:
        self.end(EndReason.STOPPED, message or STOPPED)

    def end(self, reason: EndReason, message: str, kind: str = WORKER_FAILED) -> None:
        """``kind``: of the error to be counted, where it failed."""
        self.take_state(ConversationState(Phase.ENDED, reason=reason, message=message), kind)

    @property
    def is_over(self) -> bool:
        return self._state.phase is Phase.ENDED

    def take_state(self, state: ConversationState, kind: str = WORKER_FAILED) -> None:
        with self._changed:
            if self.is_over:
                return
            self._state = state
            self._changed.notify_all()
        if state.phase is Phase.ENDED:
            self._refuse_tellings()
        if state.reason is not None:
            if state.reason is EndReason.FAILED:
                self._server.record.failed(kind)
            self._server.record.ended(state.reason, self._frames)
        self._listener.on_state(state)

    def _refuse_tellings(self) -> None:
        """Nothing can be told any more: answer whoever waits for that."""
        with self._changed:
            waiting, self._to_tell = [future for _, future in self._to_tell], deque()
            sent, self._telling = list(self._telling), deque()
        for future in [*sent, *(each for each in waiting if each.set_running_or_notify_cancel())]:
            future.set_exception(InputError(OVER))

    # -- a thread of its own, in the visitor's context ----------------------------------------

    def run(self) -> None:
        """Hold the call from its announcement to its end."""
        self.take_state(ConversationState(Phase.QUEUED))
        try:
            with self._server.exchange.expect() as expected:
                line = threading.Thread(target=self._listen, args=[expected], name="remote-line", daemon=True)
                line.start()
                try:
                    self._follow(self.work(expected.address, expected.ticket))
                finally:
                    expected.give_up(DIAL_WITHIN_SEC)
                    line.join(CLOSE_WITHIN_SEC)
            self.end(EndReason.FAILED, self._server.gone)
        except Exception as error:
            reason, sentence = self._server.explain(error, self.is_up)
            self.end(reason, sentence, type(error).__name__)
        finally:
            self._server.forget(self)

    def work(self, address: str, ticket: bytes) -> Work:
        """A subclass's own: have a worker dial ``address`` with ``ticket`` and hold the conversation."""
        raise NotImplementedError

    def _follow(self, work: Work) -> None:
        """Keep the call going; let it end by itself first, close it if it does not."""
        over_at = None
        for _ in work:
            self.is_up = True
            if self.is_over:
                over_at = over_at or time.monotonic()
                if time.monotonic() - over_at > CLOSE_WITHIN_SEC:
                    log.warning("a conversation elsewhere did not hang up; it is closed")
                    work.close()
                    return

    # -- the line -------------------------------------------------------------------------------

    def _listen(self, expected: Expected) -> None:
        """Take the worker's call, and listen to it until it hangs up."""
        line = expected.wait()
        if line is None:
            return
        with line:
            threading.Thread(target=self._speak, args=[line], name="remote-microphone", daemon=True).start()
            try:
                self.hear(line)
            except (OSError, ValueError) as error:
                log.debug("the line of a conversation is over: %s", error)
        with self._changed:
            self._changed.notify_all()

    def hear(self, line: Line) -> None:
        """Take what the worker says until the line breaks, which is an OSError or a ValueError."""
        while True:
            self.take(*line.receive(within_sec=None))

    def take(self, kind: int, payload: bytes) -> None:
        """One message of the worker."""
        if kind == Kind.STATE:
            state = decode_state(payload)
            if state.phase is not Phase.QUEUED:  # the visitor waited already
                self.take_state(state)
        elif kind == Kind.FRAME and not self.is_over:
            self.take_frame(*decode_frame(payload))
        elif kind == Kind.TOLD:
            self._take_told(*decode_told(payload))

    def take_frame(self, output: FrameOutput, heard: np.ndarray, meter: Meter) -> None:
        record = self._server.record
        dropped = meter.dropped_frames + self._inbox.dropped
        record.stepped(meter.step_ms)
        record.dropped(dropped - self._dropped)
        self._dropped = dropped
        self._frames += 1
        if self._frames == round(HEALTHY_AFTER_SEC * SAMPLE_RATE_HZ / len(heard)):
            record.worked()
        self._listener.on_frame(output, heard, replace(meter, dropped_frames=dropped))

    def _take_told(self, left: int, problem: str) -> None:
        with self._changed:
            future = self._telling.popleft() if self._telling else None
        if future is not None and problem:  # None: all were refused when the conversation ended
            future.set_exception(PromptError(problem))
        elif future is not None:
            future.set_result(left)

    def _next_message(self) -> tuple[Kind, bytes]:
        """Wait for a text to be told or the microphone, BEAT_SEC at most."""
        with self._changed:
            if not self._to_tell and not self._inbox and not self.is_over:
                self._changed.wait(BEAT_SEC)
            if self.is_over:
                return Kind.HANG_UP, b""
            while self._to_tell:
                text, future = self._to_tell.popleft()
                if future.set_running_or_notify_cancel():
                    self._telling.append(future)
                    return Kind.TELL, text.encode()
            found = self._inbox.take()
        return (Kind.BEAT, b"") if found is None else (Kind.SOUND, encode_sound(found[0]))

    def _speak(self, line: Line) -> None:
        """Send the microphone: what waits longer than two frames is dropped."""
        try:
            kind = Kind.BEAT
            while kind != Kind.HANG_UP:
                kind, payload = self._next_message()
                line.send(kind, payload, within_sec=SEND_WITHIN_SEC)
                if kind == Kind.SOUND:
                    self.sent_sound()
        except OSError as error:
            log.debug("the worker hung up: %s", error)

    def sent_sound(self) -> None:
        """A frame of the microphone has left; for those who watch whether it is answered."""
