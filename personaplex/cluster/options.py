"""What a cluster's deployment is started with: its arguments, and the Serve options that follow from them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from personaplex.config import AUTO_CACHE, NANO, PERSONA_WINDOW, checked_kv_cache, checked_window
from personaplex.errors import ConfigError
from personaplex.messages import Limits
from personaplex.settings import AUTO, DTYPES
from personaplex.strict import check_range, strict_dataclass

APP = "personaplex"
"""Serve's name of the application."""
DEPLOYMENT = "Talks"
"""Serve's name of the replicas that hold conversations."""
BUSY_SHARE = 0.75
"""More replicas are asked for once so much of the places is taken: one takes seconds to minutes to start."""
GOODBYE_SEC = 60.0
"""Beyond the longest conversation, before a replica that is replaced is stopped in spite of it."""


@dataclass(frozen=True)
class ClusterOptions:
    """Arguments of ``personaplex.cluster.app:app``: of each replica, and of their number."""

    model: str = NANO
    device: str = AUTO
    dtype: str = AUTO
    context: int | None = None  # frames the model remembers; its own if not given
    window: str = PERSONA_WINDOW
    kv_cache: str = AUTO_CACHE
    slots: int = 1  # conversations of one replica at once
    conversation_sec: float = Limits.conversation_sec
    min_replicas: int = 1
    max_replicas: int = 1
    upscale_sec: float = 2.0  # the load must last so long before a replica is added
    downscale_sec: float = 300.0  # and be gone for so long before one is taken away
    gpus: float | None = None  # of a replica; 1 if not given, 0 for nano and on the CPU
    cpus: float = 1.0

    def __post_init__(self) -> None:
        checked_window(self.window)
        checked_kv_cache(self.kv_cache)
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}; {', '.join(DTYPES)} are allowed")
        for name, least, most in (
            ("slots", 1, 64), ("conversation_sec", 5, 86_400), ("min_replicas", 0, 10_000), ("max_replicas", 1, 10_000),
            ("upscale_sec", 0, 3600), ("downscale_sec", 0, 86_400), ("cpus", 0, 1024), ("gpus", 0, 64),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None:
                check_range(name, value, least, most)
        if self.max_replicas < self.min_replicas:
            raise ConfigError(f"max_replicas is {self.max_replicas}; {self.min_replicas} or more is needed")

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> ClusterOptions:
        """From YAML, or from ``serve run … slots=4``, whose values are text; ConfigError for an unknown or bad one."""
        hints = typing.get_type_hints(cls)
        return strict_dataclass(cls, {key: _parsed(hints.get(key), key, value) for key, value in given.items()})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def gpus_of_replica(self) -> float:
        on_cpu = self.model == NANO or self.device == "cpu"
        return self.gpus if self.gpus is not None else float(not on_cpu)

    def deployment(self) -> dict[str, Any]:
        """Options of ``serve.deployment``."""
        scaled: dict[str, Any] = {"num_replicas": self.min_replicas}
        if self.max_replicas > self.min_replicas:
            scaled = {
                "autoscaling_config": {
                    "min_replicas": self.min_replicas,
                    "max_replicas": self.max_replicas,
                    "target_ongoing_requests": max(0.5, BUSY_SHARE * self.slots),
                    "upscale_delay_s": self.upscale_sec,
                    "downscale_delay_s": self.downscale_sec,
                    "metrics_interval_s": 1.0,
                    "look_back_period_s": 2.0,
                }
            }
        return {
            "name": DEPLOYMENT,
            **scaled,
            "max_ongoing_requests": self.slots,
            "max_queued_requests": -1,  # each page bounds who waits there; Serve's limit would count those on their way
            "health_check_period_s": 2.0,
            "health_check_timeout_s": 5.0,
            "graceful_shutdown_timeout_s": self.conversation_sec + GOODBYE_SEC,
            "graceful_shutdown_wait_loop_s": 1.0,
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus_of_replica},
        }


def _parsed(hint: Any, key: str, value: Any) -> Any:
    kind = next((kind for kind in (*typing.get_args(hint), hint) if kind in (int, float)), None)
    if kind is None or not isinstance(value, str):
        return value
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(f"{key} is {value!r}; a {'whole number' if kind is int else 'number'} is needed") from None
