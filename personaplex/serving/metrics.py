"""For the operator: Prometheus figures, a health answer, and the record of a server that both are made of.

No names, texts or sound are in them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from personaplex.messages import EndReason, ServerStatus

log = logging.getLogger(__name__)

STEP_BUCKETS_SEC = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0)
"""Fine below the 80 ms a step may take."""


UNHEALTHY_AFTER_FAILURES = 3
"""In a row: a model that lost its weights, or a GPU that fell off, is reported and not a single mishap."""
HEALTHY_AFTER_SEC = 10.0
"""A conversation that has gone on for so long shows that the model works again."""
STATUS_STEPS = 1000


class Metrics:
    """Prometheus metrics in a registry of their own, so that several servers (and tests) do not collide."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.step_seconds = Histogram(
            "personaplex_step_seconds", "Time of one 80 ms frame of all its conversations",
            buckets=STEP_BUCKETS_SEC, registry=self.registry,
        )  # fmt: skip
        self.dropped_frames = Counter(
            "personaplex_dropped_frames", "Microphone frames that newer ones replaced", registry=self.registry
        )
        self.errors = Counter(
            "personaplex_errors", "Failures of the model, by kind of error", ["kind"], registry=self.registry
        )
        self.ended = Counter(
            "personaplex_conversations_ended", "Conversations that are over, by reason", ["reason"],
            registry=self.registry,
        )  # fmt: skip
        self._status: Callable[[], ServerStatus] | None = None
        self.registry.register(self)

    def watch(self, status: Callable[[], ServerStatus]) -> None:
        """Read the gauges from there whenever somebody asks."""
        self._status = status

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Gauges of the moment; called by the registry."""
        status = self._status() if self._status is not None else None
        for name, what, value in (
            ("personaplex_conversations", "Conversations that run", status.running if status else 0),
            ("personaplex_queue", "Visitors who wait for a slot", status.waiting if status else 0),
            ("personaplex_slots", "Conversations that can run at once", status.slots if status else 0),
            ("personaplex_healthy", "1 when conversations can be held", int(status.healthy) if status else 0),
        ):
            yield GaugeMetricFamily(name, what, value=value)

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)

    def health(self) -> tuple[int, dict[str, Any]]:
        """HTTP status and body of the health endpoint: 503 while the model loads or when it keeps failing."""
        if self._status is None:
            return 503, {"healthy": False, "message": "the model is loading"}
        status = self._status()
        return (200 if status.healthy else 503), asdict(status)


class ServerRecord:
    """Steps, drops and failures of one server; every method may be called from any thread."""

    def __init__(self, metrics: Metrics, slots: int) -> None:
        self._metrics, self._slots = metrics, slots
        self._lock = threading.Lock()
        self._step_ms: deque[float] = deque(maxlen=STATUS_STEPS)
        self._dropped = self._errors = self._failures_in_a_row = 0
        self._trouble = ""

    def stepped(self, step_ms: float) -> None:
        with self._lock:
            self._step_ms.append(step_ms)
        self._metrics.step_seconds.observe(step_ms / 1000)

    def dropped(self, frames: int = 1) -> None:
        with self._lock:
            self._dropped += frames
        self._metrics.dropped_frames.inc(frames)

    def failed(self, kind: str) -> None:
        """The model failed with an error of this kind, as ``"RuntimeError"``."""
        with self._lock:
            self._errors += 1
            self._failures_in_a_row += 1
            self._trouble = f"the model failed {self._failures_in_a_row} times in a row ({kind})"
        self._metrics.errors.labels(kind).inc()

    def worked(self) -> None:
        """A conversation went on for HEALTHY_AFTER_SEC, or answered and came to another end than failure."""
        with self._lock:
            self._failures_in_a_row, self._trouble = 0, ""

    def ended(self, reason: EndReason, frames: int) -> None:
        """A conversation is over after ``frames`` answered frames."""
        if frames and reason is not EndReason.FAILED:
            self.worked()
        self._metrics.ended.labels(reason.value).inc()
        log.info("a conversation ended: %s", reason.value)

    def status(self, running: int, waiting: int, stopping: bool) -> ServerStatus:
        with self._lock:
            median, slowest = np.percentile(list(self._step_ms) or [0.0], [50, 99])
            return ServerStatus(
                running=running,
                waiting=waiting,
                slots=self._slots,
                step_p50_ms=round(float(median), 1),
                step_p99_ms=round(float(slowest), 1),
                dropped_frames=self._dropped,
                errors=self._errors,
                healthy=not stopping and self._failures_in_a_row < UNHEALTHY_AFTER_FAILURES,
                message="stopping" if stopping else self._trouble,
            )
