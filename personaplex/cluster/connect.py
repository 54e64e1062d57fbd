"""How a page gets at a cluster: as a node of one that runs, or with one that it starts on this machine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from personaplex.cluster.front import Place
from personaplex.cluster.options import APP, DEPLOYMENT
from personaplex.errors import CapacityError, ConfigError, first_line

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

LOOPBACK = "127.0.0.1"
ASK_WITHIN_SEC = 5.0
ASK_AGAIN_SEC = 1.0
START_ATTEMPTS = 3
OBJECT_STORE_BYTES = 100_000_000
"""Ray's shared memory on this machine; conversations need none of it."""
INSTALL = "Ray is not installed: pip install -r requirements-cluster.txt"


@dataclass(frozen=True)
class Cluster:
    """A cluster that a page can place conversations on."""

    place: Place
    describe: Callable[[], dict[str, Any]]
    """Waits for a replica; what it tells of its model."""
    address_here: str
    """Address of this machine in the cluster."""


def join(address: str, told: Callable[[str], None]) -> Cluster:
    """The cluster whose head is at ``address``; this machine must be one of its nodes. ``told``: what is waited for.

    Raises ConfigError or CapacityError with a sentence for the operator.
    """
    ray = _ray()
    told(f"joining the cluster at {address}")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning", namespace=APP)
    except Exception as error:  # of many kinds: ConnectionError, RuntimeError, ValueError
        raise ConfigError(
            f"the cluster at {address} cannot be joined ({first_line(str(error))}): start Ray on this machine with "
            f"`ray start --address {address} --num-cpus 0`, from the same versions of Python and Ray"
        ) from error
    return _cluster(ray, ray.util.get_node_ip_address(), told)


def start_ray_here() -> None:
    """Start Ray on this machine alone, for as long as this process lives; raises CapacityError where that fails."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS", "1")
    ray = _ray()
    from ray import serve

    _in_lasting_thread(lambda: _start(ray))
    serve.start(http_options={"location": "NoServer"})


def _start(ray: Any) -> None:
    """On a machine that is busy Ray gives up on itself after half a minute, so it is tried again."""
    for left in reversed(range(START_ATTEMPTS)):
        try:
            ray.init(
                address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, log_to_driver=False,
                logging_level="warning", namespace=APP, _node_ip_address=LOOPBACK,
            )  # fmt: skip
            return
        except Exception as error:
            ray.shutdown()
            if not left:
                raise CapacityError(f"Ray does not start on this machine: {first_line(str(error))}") from error


def _in_lasting_thread(start: Callable[[], None]) -> None:
    """Call ``start`` in a thread that ends with the process.

    Linux ends Ray's processes with the thread that started them (``PR_SET_PDEATHSIG``); the page's loader ends early.
    """
    started: Future[None] = Future()

    def live() -> None:
        try:
            start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        threading.Event().wait()

    threading.Thread(target=live, name="ray", daemon=True).start()
    started.result()


def cluster_here(told: Callable[[str], None]) -> Cluster:
    """The cluster of this process, once an application runs on it."""
    return _cluster(_ray(), LOOPBACK, told)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError(INSTALL) from error
    return ray


def _cluster(ray: Any, address_here: str, told: Callable[[str], None]) -> Cluster:
    from ray import serve
    from ray.serve.exceptions import RayServeException

    def handle() -> DeploymentHandle:
        while True:
            try:
                return serve.get_deployment_handle(DEPLOYMENT, APP)
            except RayServeException:
                told(f"waiting for Serve's application {APP!r}: serve deploy cluster.yaml")
                time.sleep(ASK_AGAIN_SEC)

    found = handle()
    # Made once, by one thread: a handle's first use is not safe among threads, and two routers of one handle would
    # overwrite each other's figures, so that Serve sees too few conversations and adds no replica.
    hold = found.options(stream=True).hold

    def describe() -> dict[str, Any]:
        while True:
            told("waiting for a replica that is ready")
            try:
                return found.describe.remote().result(timeout_s=ASK_WITHIN_SEC)
            except TimeoutError:
                continue
            except Exception as error:
                raise CapacityError(f"the replicas do not run: {first_line(str(error))}; see `serve status`") from error

    return Cluster(hold.remote, describe, address_here)
