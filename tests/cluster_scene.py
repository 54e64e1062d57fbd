"""What the tests of the cluster share: a replica without a model, visitors who talk at a microphone's pace."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
from fake_session import FRAME_SAMPLES, WORD, FakeSession, said

from personaplex.cluster.replica import Talks
from personaplex.messages import ConversationRequest, Limits, Phase
from personaplex.serving.server import DuplexServer

ROOT = Path(__file__).parents[1]
FRAME_SEC = 0.08


class FakeTalks(Talks):
    """A replica whose model halves what it hears."""

    def load(self):
        session = FakeSession(self.options.slots)
        session.on_step = lambda conversation, pcm: said(pcm / 2, WORD)
        server = DuplexServer(session, Limits(slots=self.options.slots, waiting=self.options.slots))
        return SimpleNamespace(hosted=SimpleNamespace(server=server))


def set_environment():
    """What processes that Ray starts inherit: where the tests' modules are, no statistics, hung replicas are ended."""
    os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS="1")


def start_ray(**more):
    """A Ray for tests, or one that runs, if ``address`` or the variable ``RAY_ADDRESS`` names it."""
    set_environment()
    import ray

    if "address" not in more and "RAY_ADDRESS" not in os.environ:
        more = dict(address="local", include_dashboard=False, object_store_memory=80_000_000, num_cpus=1)
    for left in (2, 1, 0):
        try:
            ray.init(log_to_driver=False, logging_level="error", **more)
            return
        except Exception:  # on a busy machine Ray gives up on itself after half a minute
            ray.shutdown()
            if not left:
                raise


class Visitor(threading.Thread):
    """Talks until told to leave, and notes when each answer came."""

    def __init__(self, server, name="v", text="a pirate"):
        super().__init__(daemon=True)
        self.label, self.states, self.came, self.numbers, self.rtt_ms = name, [], [], [], []
        self.sent = []
        self.leave = threading.Event()
        self.live_at = self.ended_at = None
        self.meter = None
        self.opened_at = time.perf_counter()
        self.handle = server.open(ConversationRequest(text=text), self)
        self.start()

    def on_state(self, state):
        self.states.append(state)
        if state.is_live and self.live_at is None:
            self.live_at = time.perf_counter()
        if state.phase is Phase.ENDED:
            self.ended_at = time.perf_counter()
            self.leave.set()

    def on_frame(self, output, heard, meter):
        now = time.perf_counter()
        self.came.append(now)
        self.meter = meter
        number = round(float(heard[0]) * 1e6)
        self.numbers.append(number)
        self.rtt_ms.append((now - self.sent[number]) * 1000)
        assert abs(float(output.pcm[0]) - float(heard[0]) / 2) < 1e-7

    def run(self):
        while self.live_at is None and not self.leave.wait(0.005):
            pass
        due = time.perf_counter()
        while not self.leave.is_set():
            frame = np.full(FRAME_SAMPLES, len(self.sent) * 1e-6, np.float32)
            self.sent.append(time.perf_counter())
            self.handle.push(frame)
            due += FRAME_SEC
            self.leave.wait(max(0.0, due - time.perf_counter()))
        if self.ended_at is None:
            self.handle.close()

    @property
    def pid(self):
        """Of the replica that holds it, which Serve tells a moment after the line is there."""
        until(lambda: self.handle.where)
        return int(self.handle.where)

    @property
    def last(self):
        return self.states[-1]

    def gap_sec(self, since=0):
        """The longest wait between two answers."""
        return float(max(np.diff(self.came[since:]), default=0.0))

    def __repr__(self):
        where, last = self.handle.where or "-", self.last
        return f"{self.label} at {where}: {last.phase.value} {last.message} after {len(self.came)} frames"


def until(condition, sec=20.0, what="it did not come about"):
    end = time.monotonic() + sec
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def replicas(app="test"):
    """Process ids of an application's replicas on this machine."""
    found = set()
    for process in psutil.process_iter():
        try:
            if f"ServeReplica:{app}:" in " ".join(process.cmdline()):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def front(address):
    """Another page's process: one visitor through a server of its own, for as long as it lives."""
    start_ray(address=address)
    from ray import serve

    from personaplex.cluster.front import ClusterServer

    handle = serve.get_deployment_handle("Talks", "test")
    visitor = Visitor(ClusterServer(handle.options(stream=True).hold.remote, Limits(slots=4)), "through another page")
    until(lambda: visitor.live_at)
    print(visitor.pid, "torch" in sys.modules, flush=True)
    time.sleep(60)


if __name__ == "__main__":
    front(sys.argv[1])
