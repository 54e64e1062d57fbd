"""The host of a page whose conversations run on a cluster: it loads nothing and asks a replica what the model is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from personaplex.cluster.connect import Cluster
from personaplex.cluster.facts import facts_from, hosted_from
from personaplex.cluster.front import ClusterServer
from personaplex.messages import Limits
from personaplex.serving.hosted import Host, Loading
from personaplex.serving.metrics import Metrics
from personaplex.settings import Settings

Connect = Callable[[Callable[[str], None]], Cluster]
"""Gets at a cluster, and says meanwhile what it waits for."""

CONVERSATIONS_A_PAGE = 8
"""What one process carries at once, WebRTC and all: each takes about a tenth of a core."""


class ClusterHost(Host):
    """Joins the cluster in a thread of its own, while the page is already up."""

    def __init__(self, settings: Settings, connect: Connect, *, metrics: Metrics | None = None) -> None:
        limits = Limits(slots=settings.conversations or CONVERSATIONS_A_PAGE, waiting=settings.waiting)
        super().__init__(settings, limits, metrics)
        self._connect = connect

    def load(self) -> None:
        cluster = self._connect(self._tell)
        given = cluster.describe()
        facts = facts_from(given)
        self.limits = replace(self.limits, conversation_sec=facts.conversation_sec)
        self.settings = replace(self.settings, window=facts.window)
        listen = self.settings.ray_line or f"{cluster.address_here}:0"
        server = ClusterServer(cluster.place, self.limits, self.metrics, listen=listen)
        home = self.settings.home if self.settings.offer_saved_voices else None
        self.findings = [
            ("cluster", self.settings.ray or ""),
            ("a replica runs", f"{facts.name} as {facts.format} on {facts.device}, {facts.slots} at once"),
            ("this page holds", f"{self.limits.slots} at once; replicas reach it at {server.exchange.address}"),
        ]
        self.hosted = hosted_from(given, server, home)

    def _tell(self, stage: str) -> None:
        self.loading = Loading(stage)
