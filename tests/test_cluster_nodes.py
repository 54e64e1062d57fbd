"""Two machines, simulated on this one: a node is lost while people talk."""

from __future__ import annotations

import os
import time

import pytest

pytestmark = pytest.mark.cluster
ray = pytest.importorskip("ray", reason="Ray is not installed: make cluster")

from cluster_scene import FakeTalks, Visitor, set_environment, start_ray, until  # noqa: E402
from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from personaplex.cluster.app import application  # noqa: E402
from personaplex.cluster.front import ClusterServer  # noqa: E402
from personaplex.cluster.options import ClusterOptions  # noqa: E402
from personaplex.messages import EndReason, Limits  # noqa: E402

NODE = dict(num_cpus=1, object_store_memory=80_000_000)


class Where(FakeTalks):
    """A replica that says which node it is on."""

    async def hold(self, *asked):
        async for _ in super().hold(*asked):
            yield ray.get_runtime_context().get_node_id()


@pytest.fixture(scope="module")
def nodes():
    os.environ.pop("RAY_ADDRESS", None)
    set_environment()
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    second = cluster.add_node(**NODE)
    start_ray(address=cluster.address)
    serve.start(http_options={"location": "NoServer"})
    yield cluster, second
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


def test_a_node_that_is_lost_ends_its_own_talks_alone(nodes):
    cluster, second = nodes
    options = ClusterOptions(slots=1, min_replicas=2, max_replicas=2, cpus=1)
    made = application(options, Where, health_check_period_s=1, health_check_timeout_s=2)
    handle = serve.run(made, name="test", route_prefix=None, blocking=False)
    server = ClusterServer(handle.options(stream=True).hold.remote, Limits(slots=4))
    a, b = Visitor(server, "a"), Visitor(server, "b")
    until(lambda: a.handle.where and b.handle.where and a.came and b.came, 60)
    assert a.handle.where != b.handle.where, "one replica on each node"
    lost, kept = (a, b) if a.handle.where == second.node_id else (b, a)
    before, gone_at = len(kept.came), time.perf_counter()
    cluster.remove_node(second, allow_graceful=False)
    until(lambda: lost.ended_at, 10)
    assert lost.last.reason is EndReason.FAILED and "is gone" in lost.last.message
    assert lost.ended_at - gone_at <= 4.0
    c = Visitor(server, "c")
    time.sleep(1)
    assert not c.live_at and not c.ended_at, "there is no place on the node that is left"
    kept.leave.set()
    until(lambda: c.live_at, 20)
    assert kept.gap_sec(before - 2) < 2.0 and kept.last.reason is EndReason.STOPPED
    c.leave.set()
    until(lambda: c.ended_at)
    server.close()
