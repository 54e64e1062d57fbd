"""How busy other programs keep the processor, from Linux's counters."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICKS_PER_SEC = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_LEAST_SEC = 0.2  # the counts come in steps of 10 ms: a shorter interval is too coarse


class OtherPrograms:
    """The processor time that other programs use, measured from this object's creation on."""

    def __init__(self) -> None:
        self._before = _times()

    def busy_cores(self) -> float | None:
        """Cores that other programs used meanwhile, on average; None where none counts, or the time was too short."""
        now = _times()
        if self._before is None or now is None or now[0] - self._before[0] < _LEAST_SEC:
            return None
        elapsed_sec, all_sec, own_sec = (after - before for after, before in zip(now, self._before, strict=True))
        return max(0.0, all_sec - own_sec) / elapsed_sec


def crowded(busy_cores: float | None, cores: int) -> str:
    """A sentence where others leave less than a core; "" where there is room."""
    if busy_cores is None or cores - busy_cores >= 1:
        return ""
    return f"other programs keep {min(busy_cores, cores):.1f} of {cores} cores busy: everything takes longer meanwhile"


def _times() -> tuple[float, float, float] | None:
    """(now, busy time of this process's cores, of this process), in seconds."""
    try:
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
        usable = os.sched_getaffinity(0)
    except (OSError, AttributeError):
        return None
    busy_ticks = 0
    for name, *counts in (line.split() for line in lines if line.startswith("cpu")):
        if name[3:].isdigit() and int(name[3:]) in usable:
            user, nice, system, _, _, interrupts, soft_interrupts, *more = map(int, counts)
            busy_ticks += user + nice + system + interrupts + soft_interrupts + (more[0] if more else 0)
    own = os.times()
    return time.monotonic(), busy_ticks / _TICKS_PER_SEC, own.user + own.system
