"""A cluster on this machine: two replicas of one place without a model, and everything that can go wrong with them.

make cluster     # in an environment of its own, which has Ray
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytestmark = pytest.mark.cluster
ray = pytest.importorskip("ray", reason="Ray is not installed: make cluster")

from cluster_scene import ROOT, FakeTalks, Visitor, replicas, start_ray, until  # noqa: E402
from ray import serve  # noqa: E402

from personaplex.cluster.app import application  # noqa: E402
from personaplex.cluster.front import HANGS, ClusterServer  # noqa: E402
from personaplex.cluster.options import ClusterOptions  # noqa: E402
from personaplex.messages import EndReason, Limits, Phase  # noqa: E402

GAP_SEC = 1.0
"""Others may hear a break so long while a new process starts on the cores that they run on."""
QUICK = dict(
    health_check_period_s=1, health_check_timeout_s=2, graceful_shutdown_wait_loop_s=0.3,
    ray_actor_options={"num_cpus": 0.1},
)  # fmt: skip


def deploy(name="test", replica=FakeTalks, **options):
    options = ClusterOptions(slots=1, **{"min_replicas": 2, "max_replicas": 2, **options})
    made = application(options, replica, **QUICK)
    return serve.run(made, name=name, route_prefix=None, blocking=False)


def page(handle, **limits):
    return ClusterServer(handle.options(stream=True).hold.remote, Limits(**{"slots": 2, "waiting": 1, **limits}))


@pytest.fixture(scope="module")
def cluster():
    start_ray()
    serve.start(http_options={"location": "NoServer"})
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def server(cluster):
    made = page(deploy())
    yield made
    made.close()


@pytest.fixture
def come(server):
    came = []

    def visitor(name="v", at=None):
        came.append(Visitor(at or server, name))
        return came[-1]

    yield visitor
    print(came)
    for visitor in came:
        visitor.leave.set()
    until(lambda: all(visitor.ended_at for visitor in came))
    until(lambda: server.status().running + server.status().waiting == 0)


def two(come):
    a, b = come("a"), come("b")
    until(lambda: a.live_at and b.live_at, 40)
    return a, b


def test_sound_comes_back_in_order_and_none_is_dropped(come):
    visitor = come()
    until(lambda: len(visitor.came) >= 40, 40)
    assert visitor.numbers == sorted(visitor.numbers) and visitor.meter.dropped_frames == 0
    assert np.median(visitor.rtt_ms) < 20


def test_each_gets_a_replica_the_third_waits_the_fourth_is_refused(come):
    a, b = two(come)
    assert a.pid != b.pid
    c = come("c")
    until(lambda: c.last.phase is Phase.QUEUED)
    d = come("d")
    until(lambda: d.ended_at)
    assert d.last.reason is EndReason.REFUSED and "All places are taken" in d.last.message
    assert c.last.phase is Phase.QUEUED
    a.leave.set()
    until(lambda: c.live_at, 5)
    assert c.pid == a.pid


def test_who_leaves_while_waiting_waits_no_more(come, server):
    a, b = two(come)
    c = come("c")
    time.sleep(0.3)
    c.leave.set()
    until(lambda: c.ended_at and server.status().waiting == 0, 3)
    d = come("d")
    a.leave.set()
    until(lambda: d.live_at, 5)
    assert not b.ended_at and not c.live_at


def test_who_leaves_gives_the_place_back(come):
    for _ in range(5):
        visitor = come()
        until(lambda visitor=visitor: visitor.live_at, 5)
        visitor.leave.set()
        until(lambda visitor=visitor: visitor.ended_at, 3)
        assert visitor.last.reason is EndReason.STOPPED


def test_a_killed_replica_ends_its_own_talk_alone(come):
    a, b = two(come)
    until(lambda: len(a.came) > 12 and len(b.came) > 12)
    killed_at, before = time.perf_counter(), len(b.came)
    os.kill(a.pid, signal.SIGKILL)
    until(lambda: a.ended_at, 3)
    assert a.last.reason is EndReason.FAILED and "is gone" in a.last.message and a.ended_at - killed_at < 1.0
    c = come("c")
    until(lambda: c.live_at, 40, "no other replica took its place")
    assert b.gap_sec(before - 2) < GAP_SEC and not b.ended_at and c.pid not in (a.pid, b.pid)


def test_a_replica_that_hangs_is_noticed_by_the_page_and_replaced_by_serve(come):
    a, b = two(come)
    until(lambda: len(a.came) > 5)
    stopped_at, before, pid = time.perf_counter(), len(b.came), a.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: a.ended_at, 6)
        assert a.last.reason is EndReason.FAILED and a.last.message == HANGS and a.ended_at - stopped_at <= 4.0
        until(lambda: pid not in replicas(), 40, "Serve did not end the replica")
    finally:
        if pid in replicas():
            os.kill(pid, signal.SIGKILL)
    c = come("c")
    until(lambda: c.live_at, 40)
    assert b.gap_sec(before - 2) < GAP_SEC and not b.ended_at


def test_a_page_that_is_killed_gives_its_places_back(come):
    """And its process has imported no PyTorch to talk."""
    address = ray.get_runtime_context().gcs_address
    until(lambda: len(replicas()) == 2, 40)
    other = subprocess.Popen(
        [sys.executable, "tests/cluster_scene.py", address], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        pid, has_torch = other.stdout.readline().split()
        assert has_torch == "False"
        a, b = come("a"), come("b")
        until(lambda: a.live_at or b.live_at)
        time.sleep(0.3)
        assert not (a.live_at and b.live_at), "the other page's place is taken"
    finally:
        killed_at = time.perf_counter()
        other.kill()
        other.wait()
    until(lambda: a.live_at and b.live_at, 5)
    assert max(a.live_at, b.live_at) - killed_at < 1.0


def test_replicas_are_replaced_by_a_new_version_once_their_talks_are_over(come, server):
    a, b = two(come)
    until(lambda: len(a.came) > 5 and len(b.came) > 5)
    old = {a.pid, b.pid}
    rolling = threading.Thread(target=deploy, kwargs=dict(conversation_sec=500.0), daemon=True)
    rolling.start()
    until(lambda: replicas() - old, 40, "no replica of the new version came")
    time.sleep(2)
    assert not a.ended_at and not b.ended_at and max(a.gap_sec(), b.gap_sec()) < GAP_SEC and old <= replicas()
    a.leave.set()
    b.leave.set()
    until(lambda: not old & replicas(), 30, "the old version stayed")
    c = come("c")
    until(lambda: c.live_at, 40)
    assert c.pid not in old
    rolling.join(40)


def test_replicas_are_added_for_visitors_of_many_threads(cluster, come):
    handle = deploy("scaled", min_replicas=1, max_replicas=3, upscale_sec=0.5, downscale_sec=600)
    crowded, came = page(handle, slots=8), []
    threads = [
        threading.Thread(target=lambda number=number: came.append(come(str(number), crowded))) for number in range(3)
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(came) == 3 and all(visitor.live_at for visitor in came), 60, "no replica was added")
    assert len({visitor.pid for visitor in came}) == 3
    for visitor in came:
        visitor.leave.set()
    until(lambda: crowded.status().running == 0)
    serve.delete("scaled")
