"""What the machine's keeper can watch: Prometheus figures and a health answer. No names, texts or sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from personaplex.messages import ServerStatus

STEP_BUCKETS_SEC = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0)
"""Fine below the 80 ms a step may take."""


class Metrics:
    """A registry of its own, so that several servers (and tests) do not meet."""

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
