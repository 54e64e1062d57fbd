"""The Serve application, for Serve's own commands:

serve run --non-blocking --name personaplex personaplex.cluster.app:app model=nano slots=2
serve deploy docs/cluster.yaml
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from personaplex.cluster.options import ClusterOptions
from personaplex.cluster.replica import Talks

if TYPE_CHECKING:
    from ray.serve import Application


def app(args: dict[str, Any]) -> Application:
    """``args``: fields of ``ClusterOptions``; raises ConfigError for an unknown or bad one."""
    return application(ClusterOptions.read(args))


def application(options: ClusterOptions, replica: type[Talks] = Talks, **more: Any) -> Application:
    """``replica``: another class of replicas; ``more``: options of ``serve.deployment`` that differ."""
    from ray import serve

    return serve.deployment(**{**options.deployment(), **more})(replica).bind(options.to_dict())
