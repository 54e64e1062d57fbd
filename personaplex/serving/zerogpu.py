"""Conversations on a borrowed GPU: each lives inside one ``@spaces.GPU`` generator.

The decorated generator runs in a forked worker, which alone has the GPU. Arguments are pickled once, so
sound goes both ways over a unix socket while the call lasts. On the visitor's side everything looks like any
other server (``messages.ConversationServer``); in the worker an ordinary ``DuplexServer`` runs.

    hold = spaces.GPU(duration=seconds_asked(limits))(conversation_on_gpu(session, limits))
    server = ZeroGpuServer(hold, limits, metrics)

``open`` is to be called in the visitor's own context: their quota pays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from gradio.exceptions import Error as GradioError

from personaplex.audio.frames import SAMPLE_RATE_HZ
from personaplex.messages import ConversationHandle, ConversationRequest, EndReason, Limits, Listener
from personaplex.serving.exchange import Exchange
from personaplex.serving.line import Line, dial
from personaplex.serving.metrics import Metrics
from personaplex.serving.remote import RemoteCall, RemoteServer, Work
from personaplex.serving.worker import LineListener, pass_on

if TYPE_CHECKING:
    from personaplex.session.session import Session

log = logging.getLogger(__name__)

HEARTBEAT_SEC = 0.2
"""The worker yields so often: a generator that does not cannot be closed."""
START_MARGIN_SEC = 15.0
"""Time asked of the quota for the prompt, beyond the conversation itself."""
PAGE_READS_WITHIN_SEC = 5.0

Hold = Callable[[str, bytes, ConversationRequest], Work]
"""(address, ticket, request) → one conversation in a worker."""


def seconds_asked(limits: Limits) -> Callable[..., float]:
    """Seconds that a call takes of the visitor's quota; the decorator wants a function of the call's arguments."""

    def asked(address: str, ticket: bytes, request: ConversationRequest) -> float:
        question = request.question  # answered faster than it lasts, but never slower
        longest = limits.conversation_sec if question is None else len(question) / SAMPLE_RATE_HZ
        return min(longest, limits.conversation_sec) + START_MARGIN_SEC

    return asked


# ---------------------------------------------------------------------------------- in the worker


def conversation_on_gpu(session: Callable[[], Session], limits: Limits) -> Hold:
    """The generator to be decorated: one conversation from its prompt to its end."""

    def hold(address: str, ticket: bytes, request: ConversationRequest) -> Work:
        from personaplex.serving.server import DuplexServer

        _calm_threads()
        with dial(address, ticket) as line:
            yield "up"
            server = DuplexServer(session(), replace(limits, slots=1, waiting=1))
            try:
                listener = LineListener(line, PAGE_READS_WITHIN_SEC)
                yield from _hold_the_line(line, server.open(request, listener), listener)
            finally:
                server.close()
        if listener.failed:  # an idle worker serves the next visitor, and a CUDA error stays with its process
            raise RuntimeError("the model failed in this worker")

    return hold


def _hold_the_line(line: Line, handle: ConversationHandle, listener: LineListener) -> Work:
    """Pass the microphone on until somebody hangs up, with a sign of life now and then."""
    beat_at = 0.0
    while not listener.is_over.is_set():
        try:
            if not pass_on(line, handle, listener, HEARTBEAT_SEC):
                return
        except TimeoutError:
            log.debug("no sound comes")
        except (OSError, ValueError):
            return
        if time.monotonic() - beat_at >= HEARTBEAT_SEC:
            beat_at = time.monotonic()
            yield "beat"


def _calm_threads() -> None:
    """A forked process cannot use the threads of OpenMP that its parent had started: it would hang."""
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)


# ---------------------------------------------------------------------------------- on the page's side


class ZeroGpuServer(RemoteServer):
    """Opens conversations that run on a lent GPU; Spaces itself decides who gets one, and when."""

    gone = "The GPU was taken away. Please press Start again."

    def __init__(self, hold: Hold, limits: Limits, metrics: Metrics | None = None):
        super().__init__(limits, metrics, exchange=Exchange("unix"))
        self.hold = hold

    def new_call(self, request: ConversationRequest, listener: Listener) -> RemoteCall:
        return _GpuCall(self, request, listener)

    def explain(self, error: Exception, is_up: bool) -> tuple[EndReason, str]:
        if isinstance(error, GradioError):
            if not is_up:  # quota and queue: a sentence for the visitor
                return EndReason.REFUSED, str(error.message)
            log.warning("the worker of a conversation is gone: %s", error.message)
            return EndReason.FAILED, self.gone
        log.error("a call to the GPU failed", exc_info=error)
        return EndReason.FAILED, "The GPU stopped working in this conversation. Please press Start again."


class _GpuCall(RemoteCall):
    def __init__(self, server: ZeroGpuServer, request: ConversationRequest, listener: Listener):
        super().__init__(server, request, listener)
        self._hold = server.hold

    def work(self, address: str, ticket: bytes) -> Work:
        return self._hold(address, ticket, self.request)
