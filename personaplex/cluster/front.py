"""The page's side of a cluster: a ``ConversationServer`` that places conversations on replicas.

A conversation is one streaming Serve call, which places it, holds its place and tells its end; the sound goes over a
line beside it. Nothing here reaches PyTorch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from prometheus_client import Histogram

from personaplex.cluster.request import encode_request
from personaplex.cluster.watch import ANSWER_WITHIN_SEC, SILENT_SEC, Watch
from personaplex.errors import PersonaPlexError, first_line
from personaplex.messages import (
    ConversationRequest,
    ConversationState,
    EndReason,
    FrameOutput,
    Limits,
    Listener,
    Meter,
)
from personaplex.serving.exchange import Exchange
from personaplex.serving.line import Line
from personaplex.serving.metrics import Metrics
from personaplex.serving.remote import WORKER_FAILED, RemoteCall, RemoteServer, Work

log = logging.getLogger(__name__)

PLACE_WITHIN_SEC = 300.0
PLACEMENT_BUCKETS_SEC = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
ANSWER_BUCKETS_SEC = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2, 5)

NO_REPLICAS = "There are no machines for conversations at the moment. Please try again in a minute."
NO_PLACE = f"No place became free in {PLACE_WITHIN_SEC / 60:.0f} minutes. Please try again later."
HANGS = "The machine that held your conversation stopped answering. Please press Start again."
LOST = "ReplicaLost"
"""Kind of error in the metrics: a replica's process, or its machine, is gone."""
SILENT = "ReplicaSilent"


class Stream(Protocol):
    """A streaming Serve call under way."""

    def __iter__(self) -> Iterator[str]: ...

    def cancel(self) -> None: ...


Place = Callable[[str, bytes, bytes], Stream]
"""(address, ticket, request) → the call that holds a conversation on one of the replicas."""


class ClusterServer(RemoteServer):
    """Places conversations on a cluster's replicas."""

    def __init__(self, place: Place, limits: Limits, metrics: Metrics | None = None, *, listen: str = "127.0.0.1:0"):
        """``listen``: HOST:PORT at which the replicas reach this page; port 0 takes any free one."""
        super().__init__(limits, metrics, exchange=Exchange(f"tcp:{listen}"))
        self.place = place
        self.placement_seconds = Histogram(
            "personaplex_placement_seconds", "Time from a visitor's start to their place on a replica",
            buckets=PLACEMENT_BUCKETS_SEC, registry=self.metrics.registry,
        )  # fmt: skip
        self.answer_seconds = Histogram(
            "personaplex_answer_seconds", "Time from a microphone frame's leaving to the next answer's coming",
            buckets=ANSWER_BUCKETS_SEC, registry=self.metrics.registry,
        )  # fmt: skip

    def new_call(self, request: ConversationRequest, listener: Listener) -> ClusterCall:
        return ClusterCall(self, request, listener)

    def explain(self, error: Exception, is_up: bool) -> tuple[EndReason, str]:
        if isinstance(error, PersonaPlexError):
            return EndReason.REFUSED, str(error)
        if is_up:
            log.warning("the replica of a conversation is gone: %s", first_line(str(error)))
            return EndReason.FAILED, self.gone
        log.error("a conversation could not be placed: %s: %s", type(error).__name__, first_line(str(error)))
        return EndReason.FAILED, NO_REPLICAS


class ClusterCall(RemoteCall):
    """One conversation on a replica."""

    def __init__(self, server: ClusterServer, request: ConversationRequest, listener: Listener):
        super().__init__(server, request, listener)
        self._cluster = server
        self._watch = Watch()
        self._stream: Stream | None = None
        self.where = ""
        """The replica that holds it, once one does."""
        self._opened_at = time.monotonic()
        self._patience = threading.Timer(PLACE_WITHIN_SEC, self._give_up)
        self._patience.daemon = True

    def work(self, address: str, ticket: bytes) -> Work:
        """The Serve call; it ends once the replica has let go, or is gone."""
        self._patience.start()
        self._stream = self._cluster.place(address, ticket, encode_request(self.request))
        try:
            for where in self._stream if not self.is_over else ():
                self.where = where
                yield where
        finally:
            self._patience.cancel()
            self._stream.cancel()

    def take_state(self, state: ConversationState, kind: str = WORKER_FAILED) -> None:
        super().take_state(state, kind)
        if self.is_over and not self.is_up and self._stream is not None:
            self._stream.cancel()  # it waits for a place

    def hear(self, line: Line) -> None:
        self.is_up = True
        self._patience.cancel()
        self._cluster.placement_seconds.observe(time.monotonic() - self._opened_at)
        try:
            while not self.is_over:
                self.take(*line.receive(within_sec=SILENT_SEC))
                if self._watch.late_sec() > ANSWER_WITHIN_SEC:
                    self._lose(SILENT, HANGS)
        except TimeoutError:
            self._lose(SILENT, HANGS)
        except OSError:
            self._lose(LOST, self._cluster.gone)

    def take_frame(self, output: FrameOutput, heard: np.ndarray, meter: Meter) -> None:
        waited_sec = self._watch.answered()
        if waited_sec is not None:
            self._cluster.answer_seconds.observe(waited_sec)
        super().take_frame(output, heard, meter)

    def sent_sound(self) -> None:
        self._watch.asked()

    def _lose(self, kind: str, sentence: str) -> None:
        """The replica is lost: the visitor is told, and the place given on, before Serve notices."""
        self.end(EndReason.FAILED, sentence, kind)
        self._cluster.forget(self)

    def _give_up(self) -> None:
        self.end(EndReason.REFUSED, NO_PLACE)
