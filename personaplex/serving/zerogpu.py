"""Conversations on a borrowed GPU: each lives inside one ``@spaces.GPU`` generator.

The decorated generator runs in a forked worker, which alone has the GPU. Arguments are pickled once, so
sound goes both ways over a unix socket while the call lasts. On the visitor's side everything looks like any
other server (``messages.ConversationServer``); in the worker an ordinary ``DuplexServer`` runs.

    hold = spaces.GPU(duration=seconds_asked(limits))(conversation_on_gpu(session, limits))
    server = ZeroGpuServer(hold, limits, metrics)

``open`` is to be called in the visitor's own context: their quota pays.
"""

from __future__ import annotations

import contextvars
import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from multiprocessing.connection import Client, Connection
from multiprocessing.connection import Listener as SocketListener
from typing import TYPE_CHECKING

import numpy as np
from gradio.exceptions import Error as GradioError

from personaplex.audio.frames import SAMPLE_RATE_HZ
from personaplex.messages import (
    STOPPED,
    STOPPING,
    ConversationHandle,
    ConversationRequest,
    ConversationState,
    EndReason,
    Limits,
    Listener,
    Meter,
    Phase,
    ServerStatus,
)
from personaplex.serving.metrics import HEALTHY_AFTER_SEC, Metrics, ServerRecord
from personaplex.serving.served_conversation import Inbox

if TYPE_CHECKING:
    from personaplex.messages import FrameOutput
    from personaplex.session.session import Session

log = logging.getLogger(__name__)

HEARTBEAT_SEC = 0.2
"""The worker yields so often: a generator that does not cannot be closed."""
CLOSE_WITHIN_SEC = 5.0
START_MARGIN_SEC = 15.0
"""Time asked of the quota for the prompt, beyond the conversation itself."""
HANG_UP = b""
TAKEN_AWAY = "The GPU was taken away. Please press Start again."

GpuWork = Generator[str, None, None]
GpuCall = Callable[[str, bytes, ConversationRequest], GpuWork]


def seconds_asked(limits: Limits) -> Callable[..., float]:
    """Seconds that a call takes of the visitor's quota; the decorator wants a function of the call's arguments."""

    def asked(address: str, key: bytes, request: ConversationRequest) -> float:
        question = request.question  # answered faster than it lasts, but never slower
        longest = limits.conversation_sec if question is None else len(question) / SAMPLE_RATE_HZ
        return min(longest, limits.conversation_sec) + START_MARGIN_SEC

    return asked


# ---------------------------------------------------------------------------------- in the worker


def conversation_on_gpu(session: Callable[[], Session], limits: Limits) -> GpuCall:
    """The generator to be decorated: one conversation from its prompt to its end."""

    def hold(address: str, key: bytes, request: ConversationRequest) -> GpuWork:
        from personaplex.serving.server import DuplexServer

        _calm_threads()
        with Client(address, authkey=key) as line:
            yield "up"
            server = DuplexServer(session(), replace(limits, slots=1, waiting=1))
            try:
                listener = _LineListener(line)
                yield from _hold_the_line(line, server.open(request, listener), listener)
            finally:
                server.close()
        if listener.failed:  # an idle worker serves the next visitor, and a CUDA error stays with its process
            raise RuntimeError("the model failed in this worker")

    return hold


def _hold_the_line(line: Connection, handle: ConversationHandle, listener: _LineListener) -> GpuWork:
    """Pass the microphone on until somebody hangs up, with a sign of life now and then."""
    beat_at = 0.0
    while not listener.is_over.is_set():
        try:
            if line.poll(HEARTBEAT_SEC):
                sound = line.recv_bytes()
                if sound == HANG_UP:
                    return
                handle.push(np.frombuffer(sound, np.float32))
        except (EOFError, OSError):
            return
        if time.monotonic() - beat_at >= HEARTBEAT_SEC:
            beat_at = time.monotonic()
            yield "beat"


class _LineListener:
    """Sends what happens over the line."""

    def __init__(self, line: Connection):
        self._line = line
        self.is_over = threading.Event()
        self.failed = False

    def on_state(self, state: ConversationState) -> None:
        self._send(state)
        self.failed = self.failed or state.reason is EndReason.FAILED
        if state.phase is Phase.ENDED:
            self.is_over.set()

    def on_frame(self, output: FrameOutput, heard: np.ndarray, meter: Meter) -> None:
        self._send((output, heard, meter))

    def _send(self, message: object) -> None:
        try:
            self._line.send(message)
        except OSError:
            self.is_over.set()


def _calm_threads() -> None:
    """A forked process cannot use the threads of OpenMP that its parent had started: it would hang."""
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)


# ---------------------------------------------------------------------------------- on the page's side


class ZeroGpuServer:
    """Opens conversations that run elsewhere; Spaces itself decides who gets a GPU, and when."""

    def __init__(self, hold: GpuCall, limits: Limits, metrics: Metrics | None = None):
        self._hold, self.limits = hold, limits
        self.metrics = metrics or Metrics()
        self._lock = threading.Lock()
        self._calls: set[_Call] = set()
        self._record = ServerRecord(self.metrics, limits.slots)
        self._is_closed = False
        self.metrics.watch(self.status)

    def open(self, request: ConversationRequest, listener: Listener) -> _Call:
        call = _Call(self, request, listener)
        with self._lock:
            room = not self._is_closed and len(self._calls) < self.limits.slots + self.limits.waiting
            if room:
                self._calls.add(call)
        if room:
            context = contextvars.copy_context()
            threading.Thread(target=context.run, args=[call.run, self._hold], name="gpu-call", daemon=True).start()
        else:
            call.end(EndReason.REFUSED, "All places are taken. Please try again in a few minutes.")
        return call

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            calls = list(self._calls)
        for call in calls:
            call.end(EndReason.SHUTDOWN, STOPPING)

    def status(self) -> ServerStatus:
        with self._lock:
            running = sum(call.is_up for call in self._calls)
            waiting = len(self._calls) - running
            stopping = self._is_closed
        return self._record.status(running, waiting, stopping)

    def _forget(self, call: _Call) -> None:
        with self._lock:
            self._calls.discard(call)


class _Call:
    """One conversation: a handle for the page, the far end of a line to the worker."""

    def __init__(self, server: ZeroGpuServer, request: ConversationRequest, listener: Listener):
        self._server, self._request, self._listener = server, request, listener
        self._changed = threading.Condition()
        self._inbox = Inbox(server.limits.max_waiting_frames)
        self._state = ConversationState(Phase.QUEUED)  # nothing was told yet
        self._dropped = self._frames = 0
        self._failure = "WorkerFailed"  # the kind of error to be counted
        self._was_called = threading.Event()
        self.is_up = False

    # -- the page ----------------------------------------------------------------------------

    def push(self, pcm: np.ndarray) -> None:
        with self._changed:
            if self._state.is_live:
                self._inbox.put(np.asarray(pcm, np.float32), 0.0)
                self._changed.notify()

    def close(self, message: str = "") -> None:
        self.end(EndReason.STOPPED, message or STOPPED)

    def end(self, reason: EndReason, message: str) -> None:
        self._take_state(ConversationState(Phase.ENDED, reason=reason, message=message))

    @property
    def _is_over(self) -> bool:
        return self._state.phase is Phase.ENDED

    def _take_state(self, state: ConversationState) -> None:
        with self._changed:
            if self._is_over:
                return
            self._state = state
            self._changed.notify_all()
        if state.reason is not None:
            if state.reason is EndReason.FAILED:
                self._server._record.failed(self._failure)
            self._server._record.ended(state.reason, self._frames)
        self._listener.on_state(state)

    # -- a thread of its own, in the visitor's context ----------------------------------------

    def run(self, hold: GpuCall) -> None:
        folder, key = tempfile.mkdtemp(prefix="personaplex-"), secrets.token_bytes(16)
        address = os.path.join(folder, "line")
        self._take_state(ConversationState(Phase.QUEUED))
        try:
            with SocketListener(address, "AF_UNIX", authkey=key) as socket:
                line = threading.Thread(target=self._line, args=[socket], name="gpu-line", daemon=True)
                line.start()
                try:
                    self._follow(hold(address, key, self._request))
                finally:
                    if not self._was_called.wait(HEARTBEAT_SEC):
                        _let_go(address, key)
                    line.join(CLOSE_WITHIN_SEC)
            self.end(EndReason.FAILED, TAKEN_AWAY)
        except GradioError as error:
            if self.is_up:
                log.warning("the worker of a conversation is gone: %s", error.message)
                self._failure = type(error).__name__
                self.end(EndReason.FAILED, TAKEN_AWAY)
            else:  # quota and queue: a sentence for the visitor
                self.end(EndReason.REFUSED, str(error.message))
        except Exception as error:
            log.exception("a call to the GPU failed")
            self._failure = type(error).__name__
            self.end(EndReason.FAILED, "The GPU stopped working in this conversation. Please press Start again.")
        finally:
            self._server._forget(self)
            shutil.rmtree(folder, ignore_errors=True)

    def _follow(self, beats: GpuWork) -> None:
        """Keep the call going; let it end by itself first, close it if it does not."""
        over_at = None
        for _ in beats:
            self.is_up = True
            if self._is_over:
                over_at = over_at or time.monotonic()
                if time.monotonic() - over_at > CLOSE_WITHIN_SEC:
                    log.warning("a conversation on the GPU did not hang up; it is closed")
                    beats.close()
                    return

    def _line(self, socket: SocketListener) -> None:
        """Take the worker's call, and listen to it until it hangs up."""
        try:
            with socket.accept() as line:
                self._was_called.set()
                threading.Thread(target=self._speak, args=[line], name="gpu-microphone", daemon=True).start()
                while True:
                    self._take(line.recv())
        except (EOFError, OSError):
            pass
        finally:
            with self._changed:
                self._changed.notify_all()

    def _take(self, message: ConversationState | tuple[FrameOutput, np.ndarray, Meter]) -> None:
        if isinstance(message, ConversationState):
            if message.phase is not Phase.QUEUED:  # it has its worker for itself
                self._take_state(message)
            return
        if self._is_over:
            return
        output, heard, meter = message
        dropped = meter.dropped_frames + self._inbox.dropped
        self._server._record.stepped(meter.step_ms)
        self._server._record.dropped(dropped - self._dropped)
        self._dropped = dropped
        self._frames += 1
        if self._frames == round(HEALTHY_AFTER_SEC * SAMPLE_RATE_HZ / len(heard)):
            self._server._record.worked()
        self._listener.on_frame(output, heard, replace(meter, dropped_frames=dropped))

    def _next_frame(self) -> np.ndarray | None:
        """Wait for the microphone; None once the conversation is over."""
        with self._changed:
            while not self._is_over:
                found = self._inbox.take()
                if found is not None:
                    return found[0]
                self._changed.wait()
        return None

    def _speak(self, line: Connection) -> None:
        """Send the microphone, newest first of all: what waits longer than two frames is dropped."""
        try:
            while (frame := self._next_frame()) is not None:
                line.send_bytes(np.ascontiguousarray(frame).tobytes())
            line.send_bytes(HANG_UP)
        except OSError:
            log.debug("the worker hung up")


def _let_go(address: str, key: bytes) -> None:
    """Connect to our own address, because no worker did, so that the thread that accepts one stops waiting."""
    try:
        Client(address, authkey=key).close()
    except OSError:
        log.debug("the line is closed already")
