"""A cluster on this machine alone, started and ended with the page, to try it: ``python app.py --ray local``."""

from __future__ import annotations

from collections.abc import Callable

from personaplex.cluster.app import application
from personaplex.cluster.connect import Cluster, cluster_here, start_ray_here
from personaplex.cluster.options import APP, ClusterOptions
from personaplex.config import NANO
from personaplex.messages import Limits
from personaplex.settings import AUTO, Settings


def start_here(settings: Settings, told: Callable[[str], None]) -> Cluster:
    """Start Ray, Serve and a replica with the page's own settings."""
    options = ClusterOptions(
        model=NANO if settings.model == AUTO else settings.model, device=settings.device, dtype=settings.dtype,
        context=settings.context, window=settings.window, slots=settings.conversations or 1,
        kv_cache=settings.kv_cache,
        conversation_sec=settings.conversation_sec or Limits.conversation_sec,
    )  # fmt: skip
    told("starting Ray on this machine")
    start_ray_here()
    from ray import serve

    told("starting a replica")
    serve.run(application(options), name=APP, route_prefix=None, blocking=False)
    return cluster_here(told)
