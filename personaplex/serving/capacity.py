"""How many conversations one process holds at once, measured when it starts.

The least of four bounds: ``MOST_AT_ONCE``; the memory for that many full caches; what the edges (WebRTC) cost each
conversation; and the time of a step, tried with 1, 2, 4 … slots of a scratch engine whose caches are full.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from personaplex.config import cache_frame_bytes
from personaplex.engine.engine import Engine
from personaplex.machine.cost import BUDGET_MS
from personaplex.machine.inspect import free_memory_bytes, usable_cores
from personaplex.machine.load import OtherPrograms, crowded
from personaplex.settings import MOST_AT_ONCE
from personaplex.weights.load import GPU_RESERVE_BYTES

if TYPE_CHECKING:
    from personaplex.machine.choose import Choice
    from personaplex.weights.load import LoadedModel

log = logging.getLogger(__name__)

STEP_WITHIN_MS = 50.0
"""Time of a step of everybody: the rest of a frame is for a piece of a newcomer's prompt, and for frames that come
while a step runs."""

CORES_SHARE = 0.8
"""Of the time of all cores, for steps and edges together."""

MEMORY_SHARE = 0.8
"""Of the free memory, for caches; recordings and saved prompts need some, too."""

STEPS = 12
ENOUGH_SEC = 1.5
"""After so long no further number of slots is tried."""

ANY_VALUE = 0.01
"""In the caches of the scratch engine; no time depends on it, but an untouched page costs no memory traffic."""


@dataclass(frozen=True)
class Capacity:
    """Conversations at once, and why not more."""

    conversations: int
    reason: str


@dataclass(frozen=True)
class Talk:
    """What a conversation costs beside the engine's steps."""

    edge_ms: float = 0.0  # processor time of WebRTC for each frame
    bytes: int = 0  # of its full cache


def capacity_of(
    choice: Choice, loaded: LoadedModel, context: int | None, edge_ms: Callable[[], float] | None
) -> Capacity:
    """Conversations of up to ``context`` frames that this process holds now; one if they cannot be measured.

    edge_ms: measures the processor time that a conversation's frame costs beside the engine.
    """
    if choice.expected_ms is not None and choice.expected_ms > STEP_WITHIN_MS:
        return Capacity(1, f"1: a frame takes at least {choice.expected_ms:.0f} ms")
    others = OtherPrograms()
    try:
        talk = Talk(edge_ms() if edge_ms else 0.0, slot_bytes(loaded, context))
        bound = bounded(talk, _free_bytes(loaded.device), usable_cores())
        found = _within_time(loaded, context, bound, talk)
        busy = crowded(others.busy_cores(), usable_cores())
        return replace(found, reason=f"{found.reason}; {busy}") if busy else found
    except Exception as error:  # whatever it is, one conversation needs no measuring
        log.exception("it could not be measured how many conversations this machine holds")
        return Capacity(1, f"1: measuring failed ({type(error).__name__}); --conversations N sets a number")


def bounded(talk: Talk, free_bytes: int | None, cores: int) -> Capacity:
    """The bound before any step is timed: of a process, of memory (None: not known) and of the edges.

    Most of an edge's work is Python, which keeps one core busy at most, whatever the machine has.
    """
    bounds = [Capacity(MOST_AT_ONCE, f"{MOST_AT_ONCE}, the most for one process")]
    if talk.edge_ms:
        edges = max(1, int(min(1.0, CORES_SHARE * cores) * BUDGET_MS / talk.edge_ms))
        why = f"WebRTC takes {talk.edge_ms:.1f} ms of a core for each frame of {BUDGET_MS:.0f}"
        bounds.append(Capacity(edges, f"{edges}: {why}"))
    if free_bytes is not None:
        room = max(1, int(MEMORY_SHARE * free_bytes / talk.bytes))
        each, free = talk.bytes / 1e9, free_bytes / 1e9
        bounds.append(Capacity(room, f"{room}: each needs {each:.2f} GB of memory, {free:.1f} GB are free"))
    return min(bounds, key=lambda bound: bound.conversations)


def slot_bytes(loaded: LoadedModel, context: int | None) -> int:
    """Bytes of a conversation's full cache."""
    frames = loaded.config.lm.context if context is None else context
    return frames * cache_frame_bytes(loaded.config.lm, loaded.kv_cache, loaded.lm.activation_dtype.itemsize)


def _free_bytes(device: str) -> int | None:
    if device == "cpu":
        return free_memory_bytes() or None
    return max(torch.cuda.mem_get_info(device)[0] - GPU_RESERVE_BYTES, 0)


def _within_time(loaded: LoadedModel, context: int | None, bound: Capacity, talk: Talk) -> Capacity:
    if bound.conversations == 1:
        return bound
    engine = Engine(
        loaded.config, loaded.lm, loaded.mimi, slots=bound.conversations, context=context,
        cache_dtype=loaded.cache_dtype, device=loaded.device,
    )  # fmt: skip
    on_cores = torch.get_num_threads() if loaded.device == "cpu" else 1
    trial = Trial(engine)
    allowed_ms = CORES_SHARE * usable_cores() * BUDGET_MS

    def holds(count: int) -> bool:
        step_ms = trial.slowest_ms(count)
        return step_ms <= STEP_WITHIN_MS and on_cores * step_ms + count * talk.edge_ms <= allowed_ms

    try:
        found = largest(holds, bound.conversations, lambda: trial.elapsed_sec < ENOUGH_SEC)
    finally:
        del engine
        trial.close()
    return _explained(found, trial.times_ms, bound)


def _explained(found: int, times_ms: dict[int, float], bound: Capacity) -> Capacity:
    took = f"a frame of {found} takes {times_ms[found]:.0f} ms" if found in times_ms else ""
    if found == bound.conversations:
        return Capacity(found, f"{bound.reason}; {took}")
    above = min((count for count in times_ms if count > found), default=None)
    more = f", of {above} {times_ms[above]:.0f}" if above else ""
    return Capacity(found, f"{found}: {took}{more} (at most {STEP_WITHIN_MS:.0f} is allowed, and cores for WebRTC)")


def largest(holds: Callable[[int], bool], most: int, has_time: Callable[[], bool]) -> int:
    """The largest tried number in 1 … ``most`` that holds, or 1: doubled until one does not, then halved in between."""
    good, bad, count = 1, most + 1, 1
    while count < bad:
        if not holds(count):
            bad = count
            break
        good = count
        count = min(2 * count, most) if count < most else bad
    while bad - good > max(1, good // 4) and has_time():
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good


class Trial:
    """Times the steps of an engine that nobody talks to; its slots are in the middle of long conversations."""

    def __init__(self, engine: Engine) -> None:
        self._engine: Engine | None = engine
        self._filled = 0
        self._began_at = time.perf_counter()
        self.times_ms: dict[int, float] = {}  # slots that moved → the slowest step

    @property
    def elapsed_sec(self) -> float:
        return time.perf_counter() - self._began_at

    def slowest_ms(self, count: int) -> float:
        """The slowest of some steps of the first ``count`` slots; of two tries, as one hiccup says nothing."""
        while self._filled < count:
            self._fill(self._filled)
            self._filled += 1
        self._step_ms(count)  # the first one records graphs, or copies weights
        slowest = self._slowest(count)
        if slowest > STEP_WITHIN_MS and min(self._step_ms(count) for _ in range(2)) <= STEP_WITHIN_MS:
            slowest = min(slowest, self._slowest(count))
        self.times_ms[count] = slowest
        return slowest

    def close(self) -> None:
        """Let go of the engine, and of the memory that PyTorch keeps of it on a GPU."""
        self._engine = None
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _slowest(self, count: int) -> float:
        times_ms: list[float] = []
        for _ in range(STEPS):
            times_ms.append(self._step_ms(count))
            if sum(time_ms > STEP_WITHIN_MS for time_ms in times_ms) > 1:
                break
        return max(times_ms)

    def _step_ms(self, count: int) -> float:
        engine = self._engine
        assert engine is not None, "the trial is over"
        active = torch.arange(engine.slots) < count
        started = time.perf_counter()
        out = engine.step(torch.full((engine.slots, engine.frame_samples), ANY_VALUE), active)
        assert out.pcm is not None, "a whole frame has sound"
        out.pcm.cpu()
        return 1000 * (time.perf_counter() - started)

    def _fill(self, row: int) -> None:
        """Put a slot where its cache has just become full."""
        engine = self._engine
        assert engine is not None, "the trial is over"
        frames = engine.context
        for leaf in engine.state.leaves():
            if leaf.ring_axis is not None:
                leaf.tensor[row].fill_(ANY_VALUE)
            elif leaf.name.endswith("position"):
                codec = leaf.name.startswith(("encoder", "decoder"))
                leaf.tensor[row] = frames * engine.config.mimi.resample_stride if codec else frames
        engine.state.frames.columns[row].zero_()
        engine.filled.put(row, frames)
