"""Which model, format and device this machine can run, and what ``auto`` takes."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from personaplex.config import NANO, PUBLISHED, LMConfig, ModelConfig
from personaplex.machine.cost import (
    BUDGET_MS,
    REAL_TIME_SHARE,
    conversations_at_once,
    embedding_weights,
    frame_bytes,
    memory_needed_bytes,
    weights_per_frame,
)
from personaplex.machine.inspect import GB, LEAST_CAPABILITY, Machine, inspect_machine
from personaplex.weights.hub import CONFIG_NAME, nano_folder

FORMATS = {"cuda": ("bfloat16", "int8", "int4"), "cpu": ("int4", "int8")}
"""Formats tried for the 7B, best first."""


def inspect_here(device: str = "cuda") -> Machine:
    """This machine, with the published 7B in mind; ``device``: which of its GPUs is meant."""
    return inspect_machine(PUBLISHED, ModelConfig().files.lm, device)


@dataclass(frozen=True)
class Candidate:
    """One way to run the 7B here."""

    device: str
    format: str
    expected_ms: float  # of a frame: bytes over bandwidth, the least it can take
    memory_bytes: float
    fits: bool
    conversations: int = 1  # at once, with full caches

    @property
    def holds_real_time(self) -> bool:
        return self.fits and self.expected_ms <= REAL_TIME_SHARE * BUDGET_MS


@dataclass(frozen=True)
class Choice:
    """What ``auto`` takes, why, and what else was weighed."""

    model: str
    device: str
    format: str
    reason: str
    expected_ms: float
    candidates: tuple[Candidate, ...]
    missing: tuple[str, ...]  # what would allow more, each with the next step


def weigh(machine: Machine, config: ModelConfig | None = None) -> tuple[Candidate, ...]:
    """Every format of the 7B on every device here, best first."""
    config = config or ModelConfig.personaplex_7b()
    # Where the system does not say how much memory it has, whoever tries will see.
    free = machine.free_memory_bytes if machine.memory_bytes else sys.maxsize
    places = [("cpu", machine.bandwidth_gb_s, free)]
    if machine.gpu is not None:
        places.insert(0, ("cuda", machine.gpu.bandwidth_gb_s, machine.gpu.free_bytes))
    found = []
    for device, bandwidth, free in places:
        for format in FORMATS[device]:
            if device == "cuda" and format != "bfloat16" and machine.gpu.capability < LEAST_CAPABILITY:
                continue  # without kernels every weight is unpacked in every frame: slower than bfloat16
            needed = memory_needed_bytes(config, format)
            expected_ms = _expected_ms(config.lm, format, bandwidth)
            at_once = conversations_at_once(config, format, free, bandwidth)
            found.append(Candidate(device, format, expected_ms, needed, needed <= free, at_once))
    return tuple(found)


def choose(machine: Machine) -> Choice:
    """The model and format that ``auto`` means on a machine."""
    candidates = weigh(machine)
    best = next((c for c in candidates if c.holds_real_time), None)
    missing = _missing(machine, candidates, best)
    if best is not None and machine.can_get_weights:
        where = f"the {machine.gpu.name}" if best.device == "cuda" and machine.gpu else "the CPU"
        reason = f"{where} reads a frame's weights in {best.expected_ms:.0f} ms of the {BUDGET_MS:.0f} it lasts"
        return Choice(PUBLISHED, best.device, best.format, reason, best.expected_ms, candidates, missing)
    nano = ModelConfig.from_json(nano_folder() / CONFIG_NAME)
    format = nano.quantization.format if nano.quantization else "float32"
    reason = "it ships with the program and runs faster than real time on one core"
    if best is None:
        reason += "; nothing here holds the 7B in real time"
    else:
        reason += "; the 7B would run here, but its weights are not at hand"
    expected_ms = _expected_ms(nano.lm, format, machine.bandwidth_gb_s)
    return Choice(NANO, "cpu", format, reason, expected_ms, candidates, missing)


def _expected_ms(config: LMConfig, format: str, bandwidth_gb_s: float) -> float:
    return 1000 * frame_bytes(config, format) / (max(bandwidth_gb_s, 1e-3) * GB)


def _missing(machine: Machine, candidates: tuple[Candidate, ...], best: Candidate | None) -> tuple[str, ...]:
    notes = []
    if machine.gpu is not None and machine.gpu.capability < LEAST_CAPABILITY:
        notes.append("a GPU from Ampere on (compute capability 8.0) for the 7B in int8 or int4: this one is older")
    if best is None:
        nearest = min((c for c in candidates if c.fits), key=lambda c: c.expected_ms, default=None)
        if nearest is None:
            least = min(candidates, key=lambda c: c.memory_bytes)
            notes.append(f"memory for the 7B: {least.memory_bytes / GB:.1f} GB free are needed at {least.format}")
        else:
            notes.append(
                f"speed for the 7B live: {nearest.expected_ms:.0f} ms a frame is the least possible here "
                f"({nearest.format} on the {nearest.device}); recorded questions can be answered all the same"
            )
    if not machine.can_get_weights:
        notes.append(
            f"the 7B's weights: accept the licence on https://huggingface.co/{PUBLISHED}, make a read token at "
            "https://huggingface.co/settings/tokens and set HF_TOKEN"
        )
    needed = 2 * (weights_per_frame(LMConfig()) + embedding_weights(LMConfig()))
    if not machine.weights_cached and machine.free_disk_bytes < 1.2 * needed:
        notes.append(f"disk for the 7B: {1.2 * needed / GB:.0f} GB free where HF_HOME points")
    return tuple(notes)
