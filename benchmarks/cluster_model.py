"""Capacity of a cluster for many talks at once: GPUs, fronts, bandwidth, cost, and a simulation of who waits.

    python -m benchmarks.cluster_model --talks 1000
    python -m benchmarks.cluster_model --table              # 10, 1 000 and 100 000 talks: the tables of docs/cluster.md

No clock is read: what a GPU carries is computed from bytes (`personaplex.machine.cost`), the rest is arithmetic on
figures that are arguments. Visitors come at random (a Poisson process) at the rate that keeps ``--talks`` going; how
long they stay is log-normal, cut at ``--longest-sec``. Half-way through, the rate rises to ``--surge`` times as much
within ``--surge-sec``, and stays. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from personaplex.cluster.host import CONVERSATIONS_A_PAGE
from personaplex.cluster.options import BUSY_SHARE
from personaplex.config import ModelConfig
from personaplex.machine.cost import conversations_at_once
from personaplex.messages import FrameOutput, Meter
from personaplex.serving.layout import HEADER, encode_frame

GPUS = {  # memory in GB, GB/s: the makers' data sheets
    "L4": (24, 300), "A10G": (24, 600), "L40S": (48, 864),
    "A100-80": (80, 2039), "H100": (80, 3350), "H200": (141, 4800),
}  # fmt: skip
BANDWIDTH_SHARE = 0.7  # of the data sheet's, reached by kernels that read weights once
MEMORY_SHARE = 0.9
FORMATS = ("bfloat16", "int8", "int4")
SCALES = (10, 1_000, 100_000)
COPIES, COPY_SLOTS, COPY_HOURS = (1, 2, 4, 16), 4, 12.0
"""The last table: pages with four places each, and how long they are watched."""
STEP_SEC = 1.0  # how often Serve's controller looks at the load


@dataclass(frozen=True)
class Plan:
    """A cluster, its visitors and how quickly it grows."""

    talks: int  # at once, before the surge
    slots: int  # of a replica
    start_sec: float  # from the decision to the new replica's first talk, its machine's start included
    mean_sec: float = 180.0  # of a talk
    spread: float = 1.0  # of its logarithm
    longest_sec: float = 600.0
    patience_sec: float = 60.0  # then a waiting visitor leaves
    waiting: int = 8  # places in a front's queue
    hours: float = 2.0
    surge: float = 2.0
    surge_sec: float = 60.0
    upscale_sec: float = 2.0
    downscale_sec: float = 300.0
    busy_share: float = BUSY_SHARE
    fixed: int = 0  # replicas, where their number does not follow the load
    seed: int = 1

    @property
    def fronts(self) -> int:
        return math.ceil(self.talks * self.surge / CONVERSATIONS_A_PAGE)


@dataclass(frozen=True)
class Outcome:
    """What the visitors of a simulated cluster met with."""

    visitors: int
    waits_sec: np.ndarray  # [served] float64
    refused: int
    left: int
    replicas: tuple[int, int]  # fewest, most
    short_sec: float  # time in which somebody waited
    used_share: float  # of the places that ran, taken


def talks_a_gpu(gpu: str, format: str, context_frames: int, config: ModelConfig | None = None) -> int:
    """Conversations of the 7B that one card carries, by its bytes: an estimate that no card has confirmed."""
    memory_gb, gb_s = GPUS[gpu]
    free = memory_gb * 1e9 * MEMORY_SHARE
    return conversations_at_once(config or ModelConfig(), format, free, gb_s * BANDWIDTH_SHARE, context_frames)


def line_mbit_s(frame_samples: int = 1920, frames_a_sec: float = 12.5) -> tuple[float, float]:
    """Of one talk between front and replica: (to the replica, to the front), in Mbit/s."""
    sound = np.zeros(frame_samples, np.float32)
    answer = encode_frame(FrameOutput(sound, 0, np.zeros(17, np.int64)), sound, Meter())
    sizes = (HEADER.size + sound.nbytes, HEADER.size + len(answer))
    up, down = (round(8 * size * frames_a_sec / 1e6, 2) for size in sizes)
    return up, down


def arrivals_sec(plan: Plan, draw: np.random.Generator) -> np.ndarray:
    """[visitors] float64, ascending: a Poisson process whose rate rises from one to ``surge`` half-way."""
    total_sec, base = plan.hours * 3600, plan.talks / _mean_length_sec(plan)
    most = base * max(1.0, plan.surge)
    times = np.sort(draw.uniform(0, total_sec, draw.poisson(most * total_sec)))
    risen = np.clip((times - total_sec / 2) / max(plan.surge_sec, 1e-9), 0, 1)
    rate = base * (1 + (plan.surge - 1) * risen)
    return times[draw.uniform(0, most, len(times)) < rate]


def lengths_sec(plan: Plan, count: int, draw: np.random.Generator) -> np.ndarray:
    """[count] float64: how long each talks."""
    mu = math.log(plan.mean_sec) - plan.spread**2 / 2
    return np.minimum(draw.lognormal(mu, plan.spread, count), plan.longest_sec)


def _mean_length_sec(plan: Plan) -> float:
    return float(lengths_sec(plan, 200_000, np.random.default_rng(plan.seed + 1)).mean())


class Simulation:
    """Visitors on places that follow the load, second by second."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.replicas = plan.fixed or math.ceil(plan.talks / plan.slots / plan.busy_share)
        self.starting: deque[tuple[float, int]] = deque()  # (ready at, how many)
        self.ends: list[float] = []  # a heap: when running talks end
        self.queue: deque[tuple[float, float]] = deque()  # (came at, how long they will talk)
        self.wanted: deque[tuple[float, int]] = deque()  # what the load asked for lately
        self.over_since: float | None = None
        self.waits: list[float] = []
        self.refused = self.left = 0
        self.short_sec = self.places_sec = self.taken_sec = 0.0

    def run(self) -> Outcome:
        draw = np.random.default_rng(self.plan.seed)
        came = arrivals_sec(self.plan, draw)
        stay = lengths_sec(self.plan, len(came), draw)
        self._warm(draw)
        counts, next_one = [self.replicas], 0
        for now in np.arange(STEP_SEC, self.plan.hours * 3600, STEP_SEC):
            while next_one < len(came) and came[next_one] < now:
                self._arrive(float(came[next_one]), float(stay[next_one]))
                next_one += 1
            self._serve(float(now))
            self._scale(float(now))
            counts.append(self.replicas)
        return Outcome(
            next_one, np.array(self.waits), self.refused, self.left, (min(counts), max(counts)), self.short_sec,
            self.taken_sec / max(self.places_sec, 1e-9),
        )  # fmt: skip

    def _warm(self, draw: np.random.Generator) -> None:
        """Begin with talks that are under way: a talk is met with a chance that grows with its length."""
        stay = lengths_sec(self.plan, 10 * self.plan.talks, draw)
        met = draw.choice(stay, self.plan.talks, p=stay / stay.sum())
        self.ends = list(met * draw.uniform(0, 1, self.plan.talks))
        heapq.heapify(self.ends)

    def _arrive(self, now: float, stay: float) -> None:
        self._let_in(now)
        if len(self.ends) < self.replicas * self.plan.slots and not self.queue:
            heapq.heappush(self.ends, now + stay)
            self.waits.append(0.0)
        elif len(self.queue) >= self.plan.fronts * self.plan.waiting:
            self.refused += 1
        else:
            self.queue.append((now, stay))

    def _let_in(self, now: float) -> None:
        """Places that have become free until ``now`` go to those who wait, at the moment they did."""
        places = self.replicas * self.plan.slots
        while self.ends and self.ends[0] <= now:
            free_at = heapq.heappop(self.ends)
            self._next_in_line(free_at, places)
        self._next_in_line(now, places)

    def _next_in_line(self, at: float, places: int) -> None:
        while self.queue and len(self.ends) < places:
            came, stay = self.queue.popleft()
            if at - came > self.plan.patience_sec:
                self.left += 1
                continue
            start = max(at, came)
            heapq.heappush(self.ends, start + stay)
            self.waits.append(start - came)

    def _serve(self, now: float) -> None:
        self._let_in(now)
        while self.queue and now - self.queue[0][0] > self.plan.patience_sec:
            self.queue.popleft()
            self.left += 1
        self.short_sec += STEP_SEC * bool(self.queue)
        self.places_sec += STEP_SEC * self.replicas * self.plan.slots
        self.taken_sec += STEP_SEC * min(len(self.ends), self.replicas * self.plan.slots)

    def _scale(self, now: float) -> None:
        """As Serve does: so many replicas that each is busy to ``busy_share``, up soon, down late."""
        plan = self.plan
        if plan.fixed:
            return
        while self.starting and self.starting[0][0] <= now:
            self.replicas += self.starting.popleft()[1]
        asked = math.ceil((len(self.ends) + len(self.queue)) / (plan.slots * plan.busy_share))
        self.wanted.append((now, asked))
        while self.wanted[0][0] < now - plan.downscale_sec:
            self.wanted.popleft()
        coming = self.replicas + sum(count for _, count in self.starting)
        if asked > coming:
            self.over_since = now if self.over_since is None else self.over_since
            if now - self.over_since >= plan.upscale_sec:
                self.starting.append((now + plan.start_sec, asked - coming))
                self.over_since = None
            return
        self.over_since = None
        most = max(count for _, count in self.wanted)
        if most < self.replicas and not self.starting:
            self.replicas = max(most, math.ceil(len(self.ends) / plan.slots), 1)  # full ones finish their talks


def summary(plan: Plan, outcome: Outcome, gpu_hour: float, gpus_a_replica: float) -> dict[str, Any]:
    """The plan's needs and what its visitors met with, as numbers with units."""
    waits = outcome.waits_sec if len(outcome.waits_sec) else np.zeros(1)
    up, down = line_mbit_s()
    peak = plan.talks * plan.surge
    return {
        "talks": plan.talks,
        "surge_talks": peak,
        "slots": plan.slots,
        "start_sec": plan.start_sec,
        "replicas": outcome.replicas,
        "fronts": plan.fronts,
        "line_gbit_s": [round(peak * mbit / 1000, 3) for mbit in (up, down)],
        "visitors": outcome.visitors,
        "waited_share": round(float((waits > 1).mean()), 4),
        "wait_p50_p99_max_sec": [round(float(np.percentile(waits, share)), 1) for share in (50, 99, 100)],
        "refused_share": round(outcome.refused / max(1, outcome.visitors), 4),
        "left_share": round(outcome.left / max(1, outcome.visitors), 4),
        "short_sec": outcome.short_sec,
        "used_share": round(outcome.used_share, 3),
        "cost_a_talk_hour": round(gpu_hour * gpus_a_replica / plan.slots / max(outcome.used_share, 1e-9), 3),
    }


def main() -> None:
    given = _arguments()
    slots = given.slots or talks_a_gpu(given.gpu, given.dtype, given.context)
    if slots < 1:
        raise SystemExit(f"error: a {given.gpu} carries no talk as {given.dtype} with {given.context} frames")
    asked = Plan(
        given.talks, slots, given.start_sec, mean_sec=given.mean_sec, longest_sec=given.longest_sec, surge=given.surge,
        surge_sec=given.surge_sec, patience_sec=given.patience_sec, hours=given.hours, seed=given.seed,
    )  # fmt: skip
    if not given.table:
        print(json.dumps(summary(asked, Simulation(asked).run(), given.gpu_hour, 1.0)))
        return
    print(gpu_table(given.context))
    print(scale_table([replace(asked, talks=talks) for talks in SCALES], given.gpu_hour))
    print(copies_table(replace(asked, slots=COPY_SLOTS, surge=1.0, hours=COPY_HOURS)))


def gpu_table(context_frames: int) -> str:
    """Talks of the 7B that each card carries, by format."""
    lines = [f"| card | {' | '.join(FORMATS)} |", "| --- " * (len(FORMATS) + 1) + "|"]
    for gpu in GPUS:
        counts = [str(talks_a_gpu(gpu, name, context_frames)) for name in FORMATS]
        lines.append(f"| {gpu} | {' | '.join(counts)} |")
    return "\n".join(lines) + "\n"


def scale_table(plans: Sequence[Plan], gpu_hour: float) -> str:
    """A row for each plan: its needs before and after the surge, and who waited."""
    lines = [
        "| talks, then | replicas | fronts | line, Gbit/s | waited over 1 s | wait p99, longest | refused | left | "
        "somebody waited | places used | cost of a talk-hour |",
        "| --- " * 11 + "|",
    ]
    for plan in plans:
        found = summary(plan, Simulation(plan).run(), gpu_hour, 1.0)
        low, high = found["replicas"]
        _, p99, longest = found["wait_p50_p99_max_sec"]
        up, down = found["line_gbit_s"]
        lines.append(
            f"| {plan.talks:,}, {plan.talks * plan.surge:,.0f} | {low} to {high} | {plan.fronts:,} | "
            f"{up:g} + {down:g} | "
            f"{found['waited_share']:.1%} | {p99} s, {longest} s | {found['refused_share']:.1%} | "
            f"{found['left_share']:.1%} | {found['short_sec']:.0f} s | {found['used_share']:.0%} | "
            f"{found['cost_a_talk_hour']} |"
        )
    return "\n".join(lines) + "\n"


def copies_table(plan: Plan) -> str:
    """Copies of the page, each with its own visitors, beside a cluster that shares as many places."""
    lines = ["| talks | places | waited over 1 s on copies | left | on a cluster | left |", "| --- " * 6 + "|"]
    for copies in COPIES:
        talks = round(copies * plan.slots * plan.busy_share)
        alone = Simulation(replace(plan, talks=round(talks / copies), fixed=1)).run()
        shared = Simulation(replace(plan, talks=talks, fixed=copies)).run()
        cells = [
            f"{share:.1%}"
            for found in (alone, shared)
            for share in ((found.waits_sec > 1).mean(), found.left / found.visitors)
        ]
        lines.append(f"| {talks} | {copies} x {plan.slots} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--talks", type=int, default=10, help="at once, before the surge")
    parser.add_argument("--table", action="store_true", help="tables for 10, 1 000 and 100 000 talks instead")
    parser.add_argument("--gpu", choices=GPUS, default="L40S")
    parser.add_argument("--dtype", choices=FORMATS, default="int8")
    parser.add_argument("--context", type=int, default=3000, help="frames the model remembers")
    parser.add_argument("--slots", type=int, help="talks of a replica, where measured: instead of the three above")
    parser.add_argument("--start-sec", type=float, default=90.0, help="from the decision to a new replica's first talk")
    parser.add_argument("--mean-sec", type=float, default=180.0, help="of a talk")
    parser.add_argument("--longest-sec", type=float, default=600.0)
    parser.add_argument("--patience-sec", type=float, default=60.0, help="then a waiting visitor leaves")
    parser.add_argument("--surge", type=float, default=2.0, help="times as many visitors, half-way through")
    parser.add_argument("--surge-sec", type=float, default=60.0, help="in which their rate rises")
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--gpu-hour", type=float, default=1.0, help="price of a GPU for an hour")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
