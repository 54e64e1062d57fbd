"""A cluster on this machine beside the same engine in this process; ends in one JSON line.

    python -m benchmarks.cluster                              # overhead, 4 talks for 2 minutes, a kill every 20 s
    python -m benchmarks.cluster --minutes 0.3 --kill-sec 6   # a short run

Needs requirements-cluster.txt. One talk at a microphone's pace gives the overhead of a frame: from its leaving the
page's code to its answer, less the engine's own step; first in this process, then through Ray on a replica.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from typing import Any

import numpy as np

from benchmarks.measuring import OtherLoad, facts, note, run_benchmark, summary_ms
from personaplex.audio.files import read_recording
from personaplex.audio.frames import split_frames
from personaplex.cluster.app import application
from personaplex.cluster.connect import cluster_here, start_ray_here
from personaplex.cluster.front import ClusterServer
from personaplex.cluster.options import APP, ClusterOptions
from personaplex.errors import CapacityError
from personaplex.files import shipped_folder
from personaplex.machine.choose import inspect_here
from personaplex.messages import (
    ConversationRequest,
    ConversationServer,
    ConversationState,
    EndReason,
    FrameOutput,
    Limits,
    Meter,
    Phase,
)

FRAME_SEC = 0.08
ROLE = "You work for First Neuron Bank and your name is Sanni."
LIVE_WITHIN_SEC = 120.0
WARM_FRAMES = 25
"""Left out of the overhead: the first frames meet with cold caches."""


class Talker(threading.Thread):
    """One talk at a microphone's pace, with the time that each frame took."""

    def __init__(self, server: ConversationServer, frames: list[np.ndarray]):
        super().__init__(daemon=True)
        self.frames, self.states = frames, list[ConversationState]()
        self.sent_at, self.came_at, self.took_ms, self.step_ms = (
            list[float](),
            list[float](),
            list[float](),
            list[float](),
        )
        self.leave, self.live, self.over = threading.Event(), threading.Event(), threading.Event()
        self.ended_at = 0.0
        self.meter = Meter()
        self.handle = server.open(ConversationRequest(text=ROLE), self)
        self.start()

    def on_state(self, state: ConversationState) -> None:
        self.states.append(state)
        if state.is_live:
            self.live.set()
        if state.phase is Phase.ENDED:
            self.ended_at = time.perf_counter()
            self.over.set()
            self.leave.set()

    def on_frame(self, output: FrameOutput, heard: np.ndarray, meter: Meter) -> None:
        now, number = time.perf_counter(), len(self.came_at) + meter.dropped_frames
        self.came_at.append(now)
        self.meter = meter
        if number < len(self.sent_at):
            self.took_ms.append((now - self.sent_at[number]) * 1000)
            self.step_ms.append(meter.step_ms)

    def run(self) -> None:
        while not self.live.wait(0.01):
            if self.leave.is_set():
                return
        due = time.perf_counter()
        while not self.leave.is_set():
            self.sent_at.append(time.perf_counter())
            self.handle.push(self.frames[len(self.sent_at) % len(self.frames)])
            due += FRAME_SEC
            self.leave.wait(max(0.0, due - time.perf_counter()))
        self.handle.close()

    @property
    def reason(self) -> EndReason | None:
        return self.states[-1].reason if self.states else None

    def overhead_ms(self) -> list[float]:
        """Each frame's time less the engine's median step."""
        return [took - step for took, step in zip(self.took_ms, self.step_ms, strict=True)][WARM_FRAMES:]

    def longest_gap_ms(self) -> float:
        return round(float(np.max(np.diff(self.came_at), initial=0.0)) * 1000, 1)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The line: overhead in this process and through Ray, a steady run, a run with kills."""
    machine, others = inspect_here(), OtherLoad()
    frames = speech_frames()
    note("in this process")
    here = overhead_here(given, frames)
    note("starting Ray and two replicas")
    start_ray_here()
    server = serve_replicas(given)
    note("one talk through a replica")
    through = one_talk(server, frames, given.overhead_sec)
    note(f"{given.talks} talks for {given.minutes:g} minutes")
    steady = steady_run(server, frames, given)
    note(f"a kill every {given.kill_sec:g} s for {given.minutes:g} minutes")
    kills = kill_run(server, frames, given)
    server.close()
    line = {
        "benchmark": "cluster", "model": given.model, "replicas": given.replicas, "slots": given.slots,
        "overhead_here": summary_ms(here), "overhead_cluster": summary_ms(through), "steady": steady, "kills": kills,
        "other_load_cores": others.cores(), **facts(machine, "cpu"),
    }  # fmt: skip
    shut_down()
    return line


def speech_frames() -> list[np.ndarray]:
    """A question as frames of 80 ms, [1920] float32 each."""
    questions = shipped_folder("examples", "personas.json") / "questions"
    return list(split_frames(read_recording(questions / "bank.wav").pcm))


def overhead_here(given: argparse.Namespace, frames: list[np.ndarray]) -> list[float]:
    """Of one talk on a ``DuplexServer`` in this process, in ms."""
    from personaplex.serving.host import ModelHost
    from personaplex.settings import Settings

    host = ModelHost(Settings(model=given.model, conversations=given.slots))
    host.start()
    host.wait()
    if host.hosted is None:
        raise CapacityError(host.loading.sentence)
    found = one_talk(host.hosted.server, frames, given.overhead_sec)
    host.close()
    return found


def one_talk(server: ConversationServer, frames: list[np.ndarray], seconds: float) -> list[float]:
    talker = begun(server, frames)
    talker.leave.wait(seconds)
    end(talker)
    return talker.overhead_ms()


def begun(server: ConversationServer, frames: list[np.ndarray]) -> Talker:
    """A talk that is live; raises CapacityError with the sentence it was refused with."""
    talker = Talker(server, frames)
    if not talker.live.wait(LIVE_WITHIN_SEC):
        raise CapacityError(f"a talk did not begin: {talker.states[-1:]}")
    return talker


def end(talker: Talker) -> None:
    talker.leave.set()
    talker.over.wait(10)


def serve_replicas(given: argparse.Namespace) -> ClusterServer:
    from ray import serve

    options = ClusterOptions(
        model=given.model, slots=given.slots, min_replicas=given.replicas, max_replicas=given.replicas, cpus=given.cpus
    )
    serve.run(application(options), name=APP, route_prefix=None, blocking=False)
    cluster = cluster_here(note)
    cluster.describe()
    return ClusterServer(cluster.place, Limits(slots=given.replicas * given.slots))


def steady_run(server: ClusterServer, frames: list[np.ndarray], given: argparse.Namespace) -> dict[str, Any]:
    """Several talks at once that nothing disturbs."""
    talkers = [begun(server, frames) for _ in range(given.talks)]
    talkers[0].leave.wait(given.minutes * 60)
    lost = sum(talker.over.is_set() for talker in talkers)
    for talker in talkers:
        end(talker)
    return {
        "talks": given.talks, "lost": lost, "frames": sum(talker.meter.frames for talker in talkers),
        "dropped_frames": sum(talker.meter.dropped_frames for talker in talkers),
        "longest_gap_ms": max(talker.longest_gap_ms() for talker in talkers),
        **summary_ms([took for talker in talkers for took in talker.took_ms]),
    }  # fmt: skip


def kill_run(server: ClusterServer, frames: list[np.ndarray], given: argparse.Namespace) -> dict[str, Any]:
    """A replica is killed now and then; those whose talk was on it start again."""
    talkers = [begun(server, frames) for _ in range(given.talks)]
    told_ms, again_ms, kills, lost_elsewhere = [], [], 0, 0
    until = time.perf_counter() + given.minutes * 60
    while time.perf_counter() < until:
        time.sleep(given.kill_sec)
        victim = next(where for talker in talkers if (where := where_of(talker)))
        hit = [talker for talker in talkers if where_of(talker) == victim]
        killed_at = time.perf_counter()
        os.kill(int(victim), signal.SIGKILL)
        kills += 1
        for talker in hit:
            talker.over.wait(10)
            told_ms.append((talker.ended_at - killed_at) * 1000)
        lost_elsewhere += sum(talker.over.is_set() for talker in talkers if talker not in hit)
        talkers = [begun(server, frames) if talker.over.is_set() else talker for talker in talkers]
        again_ms.append((time.perf_counter() - killed_at) * 1000)
    for talker in talkers:
        end(talker)
    return {
        "kills": kills, "lost_elsewhere": lost_elsewhere,
        "told": summary_ms(told_ms), "all_talk_again": summary_ms(again_ms),
    }  # fmt: skip


def where_of(talker: Talker) -> str:
    """Process id of the replica that holds a talk; "" while none does."""
    return str(getattr(talker.handle, "where", ""))


def shut_down() -> None:
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--slots", type=int, default=2, help="talks of a replica")
    parser.add_argument("--cpus", type=float, default=0.5, help="of a replica, as Ray counts them")
    parser.add_argument("--talks", type=int, default=4)
    parser.add_argument("--overhead-sec", type=float, default=30.0, help="of the talk that gives the overhead")
    parser.add_argument("--minutes", type=float, default=2.0, help="of the steady run, and of the one with kills")
    parser.add_argument("--kill-sec", type=float, default=20.0)
    return parser.parse_args()


if __name__ == "__main__":
    run_benchmark(measure, _arguments())
