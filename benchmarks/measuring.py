"""Shared by all benchmarks: clocks, memory bandwidth and peak, load by others, and facts about the machine."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import psutil
import torch
from torch import Tensor

from personaplex import __version__
from personaplex.config import AUTO_CACHE, ModelConfig
from personaplex.errors import InputError, PersonaPlexError
from personaplex.machine.choose import inspect_here
from personaplex.machine.cost import memory_needed_bytes
from personaplex.machine.inspect import GB, Machine
from personaplex.nn.precision import multiplies_bfloat16

ROOT = Path(__file__).resolve().parents[1]
BANDWIDTH_PROBE_BYTES = 2**30  # several times what a processor's caches hold
BANDWIDTH_PROBE_SEC = 0.7
EXIT_BAD_INPUT = 2


# ---------------------------------------------------------------------------------- time


class HostClock:
    """Marks on the host's clock: enclosed work is finished when it returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def ms(self, start: float, end: float) -> float:
        return 1000 * (end - start)


class CudaClock:
    """Events on the current CUDA stream: recording one does not wait; times are read at the end."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end)


def clock_for(device: str) -> HostClock | CudaClock:
    return CudaClock() if device.startswith("cuda") else HostClock()


@dataclass
class Stages:
    """Times of named stages; each may be entered many times."""

    clock: HostClock | CudaClock
    marks: dict[str, list[tuple]] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = self.clock.mark()
        yield
        self.marks.setdefault(name, []).append((start, self.clock.mark()))

    @contextmanager
    def watching(self, owner: object, method: str, name: str) -> Iterator[None]:
        """Time every call of ``owner.method`` meanwhile."""
        inner = getattr(owner, method)

        def timed(*args: object, **kwargs: object) -> object:
            with self.timed(name):
                return inner(*args, **kwargs)

        setattr(owner, method, timed)
        try:
            yield
        finally:
            setattr(owner, method, inner)

    def ms(self) -> dict[str, list[float]]:
        return {name: [self.clock.ms(*pair) for pair in pairs] for name, pairs in self.marks.items()}


def summary_ms(times_ms: Sequence[float]) -> dict[str, float]:
    """p50, p99 and max in milliseconds."""
    ordered = sorted(times_ms)

    def at(share: float) -> float:
        return ordered[min(math.ceil(share * len(ordered)), len(ordered)) - 1]

    return {"p50_ms": round(at(0.5), 3), "p99_ms": round(at(0.99), 3), "max_ms": round(ordered[-1], 3)}


def percentiles_ms(times_ms: Sequence[float]) -> dict[str, float]:
    """Interpolated p50, p99, p99.9 and max in milliseconds, of many times."""
    ordered = torch.tensor(sorted(times_ms), dtype=torch.float64)
    shares = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}
    return {name: round(float(ordered.quantile(share)), 3) for name, share in shares.items()}


BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
"""The fields of ``psutil.cpu_times`` that are work; not every system has each of them."""


class OtherLoad:
    """Cores kept busy by other processes during a measurement: above a few hundredths, times are in doubt."""

    def __init__(self) -> None:
        self._before = self._now()

    def cores(self) -> float:
        """The mean since construction."""
        wall, busy, own = (end - start for start, end in zip(self._before, self._now(), strict=True))
        return round(max(busy - own, 0.0) / max(wall, 1e-9), 2)

    def _now(self) -> tuple[float, float, float]:
        """Seconds on the clock, of all processors' work, and of this process and of those it has waited for."""
        times = psutil.cpu_times()
        busy = sum(getattr(times, name, 0.0) for name in BUSY)
        return time.perf_counter(), busy, sum(os.times()[:4])


_KEEP_BUSY = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(sys.argv[1])})
print("busy", flush=True)
while os.getppid() == int(sys.argv[2]):
    for _ in range(1_000_000):
        pass
"""
"""A program that keeps a core busy: its number, and the process whose end ends it, are its arguments."""


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """While this lasts so many processes of normal priority compute, each pinned to a core, the last core first."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    started: list[subprocess.Popen[bytes]] = []
    try:
        for index in range(count):
            core = cores[-1 - index % len(cores)]
            command = [sys.executable, "-c", _KEEP_BUSY, str(core), str(os.getpid())]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        for process in started:
            assert process.stdout is not None, "it is a pipe"
            process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


# ---------------------------------------------------------------------------------- memory


def read_bandwidth_gb_s(device: str) -> float:
    """Memory bandwidth: the best of many reads of one large tensor by all threads (a sum, a product with a vector)."""
    # A GPU reads a gibibyte in little more time than the launch and the wait take.
    num_bytes = BANDWIDTH_PROBE_BYTES * (4 if device.startswith("cuda") else 1)
    block = torch.ones(num_bytes // 4 // 4096, 4096, device=device)
    vector = torch.ones(4096, device=device)
    readers: tuple[Callable[[], Tensor], ...] = (block.sum, lambda: torch.mv(block, vector))
    best_sec = math.inf
    for read in readers:
        read()
        enough = time.perf_counter() + BANDWIDTH_PROBE_SEC
        while time.perf_counter() < enough:
            _synchronize(device)
            started = time.perf_counter()
            read()
            _synchronize(device)
            best_sec = min(best_sec, time.perf_counter() - started)
    return block.nbytes / best_sec / GB


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_memory_gb(device: str) -> dict[str, float]:
    """This process's peak memory so far: on the host, and on the GPU if it uses one."""
    found = {"peak_rss_gb": round(peak_rss_bytes() / GB, 3)}
    if device.startswith("cuda"):
        found["peak_cuda_gb"] = round(torch.cuda.max_memory_reserved() / GB, 3)
    return found


def peak_rss_bytes() -> int:
    """The most memory this process has held, by Linux's ``VmHWM``; zero where the system does not say.

    psutil has no peak on Linux, and ``getrusage`` counts what the parent held before it started this process.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def check_room(
    config: ModelConfig, format: str, device: str, slots: int, context: int, kv_cache: str = AUTO_CACHE
) -> Machine:
    """Look at the machine; raise InputError, before the work, when the model does not fit into its memory."""
    one, two = (memory_needed_bytes(config, format, context * count, kv_cache) for count in (1, 2))
    what = f"{config.name} as {format} with {slots} x {context} frames of cache"
    return check_free(one + (two - one) * (slots - 1), what, device)


def check_free(needed_bytes: float, what: str, device: str) -> Machine:
    """Look at the machine; raise InputError when it has less memory free than that."""
    machine = inspect_here()
    free = machine.gpu.free_bytes if device.startswith("cuda") and machine.gpu else machine.free_memory_bytes
    if needed_bytes > free:
        raise InputError(
            f"{what} needs {needed_bytes / GB:.1f} GB of memory, {free / GB:.1f} GB are free: "
            "take a smaller --dtype, a shorter --context, fewer --slots, or a config.json with fewer layers"
        )
    return machine


# ---------------------------------------------------------------------------------- report


def facts(machine: Machine, device: str) -> dict[str, object]:
    """Machine, versions, commit and date; ``+`` after the commit marks uncommitted changes of the engine."""
    gpu = machine.gpu.name if device.startswith("cuda") and machine.gpu else None
    return {
        "processor": f"{machine.processor} ({instruction_set()})",
        "gpu": gpu,
        "device": device,
        "cores": machine.cores,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "personaplex": __version__,
        "commit": _commit(),
        "date": date.today().isoformat(),
    }


def instruction_set() -> str:
    """The widest vector instructions that PyTorch uses here, which a processor's name often does not tell."""
    return torch.backends.cpu.get_cpu_capability() + ("-BF16" if multiplies_bfloat16() else "")


def _commit() -> str | None:
    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)

    try:
        head = git("rev-parse", "--short", "HEAD").stdout.strip()
        changed = git("diff", "--quiet", "HEAD", "--", "personaplex").returncode != 0
    except OSError:
        return None
    return head + "+" * changed if head else None


def note(message: str) -> None:
    """A progress line on standard error; standard output holds the result alone."""
    print(message, file=sys.stderr, flush=True)


def run_benchmark(measure: Callable[[argparse.Namespace], dict], given: argparse.Namespace) -> None:
    """Print the JSON line; an error a user can meet is one line and exit code 2."""
    try:
        with redirect_stdout(sys.stderr):  # whatever libraries have to tell, as Ray of what was killed
            line = measure(given)
    except PersonaPlexError as error:
        note(f"error: {error}")
        raise SystemExit(EXIT_BAD_INPUT) from None
    print(json.dumps(line), flush=True)
