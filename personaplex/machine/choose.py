"""The decision which model runs on a machine, on which device and in which format; everything else reports it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import huggingface_hub

from personaplex.config import AUTO_CACHE, NANO, PUBLISHED, LMConfig, ModelConfig
from personaplex.errors import InputError
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
from personaplex.settings import AUTO, Settings
from personaplex.weights.names import CONFIG_NAME, nano_folder

FORMATS = {"cuda": ("bfloat16", "int8", "int4"), "cpu": ("int4", "int8")}
"""Formats tried for the 7B, best first."""


def inspect_here(device: str = AUTO) -> Machine:
    """This machine, and whether the published 7B is in its cache; ``device``: which of its GPUs is meant."""
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
    """The model that runs, and why."""

    model: str
    device: str  # "auto": settled when it is loaded
    format: str  # "auto": as its files are stored, settled when they are opened
    reason: str
    expected_ms: float | None = None  # None: not known before the model is opened
    candidates: tuple[Candidate, ...] = ()  # the ways to run the 7B that were weighed
    missing: tuple[str, ...] = ()  # what would allow more, each with the next step
    asked_for: bool = False  # by name, so that nothing was weighed


def weigh(
    machine: Machine, dtype: str = AUTO, config: ModelConfig | None = None, kv_cache: str = AUTO_CACHE
) -> tuple[Candidate, ...]:
    """Every format of the 7B on every device here, best first; ``dtype`` leaves only that format."""
    config = config or ModelConfig.personaplex_7b()
    # Where the system does not say how much memory it has, loading will show whether it is enough.
    free = machine.free_memory_bytes if machine.memory_bytes else sys.maxsize
    places = [("cpu", machine.bandwidth_gb_s, free)]
    if machine.gpu is not None:
        places.insert(0, ("cuda", machine.gpu.bandwidth_gb_s, machine.gpu.free_bytes))
    found = []
    for device, bandwidth, free in places:
        for format in FORMATS[device] if dtype == AUTO else (dtype,):
            if device == "cuda" and format.startswith("int") and not _has_kernels(machine):
                continue  # without kernels every weight is unpacked in every frame: slower than bfloat16
            needed = memory_needed_bytes(config, format, kv_cache=kv_cache)
            expected_ms = _expected_ms(config.lm, format, bandwidth, kv_cache)
            at_once = conversations_at_once(config, format, free, bandwidth, kv_cache=kv_cache)
            found.append(Candidate(device, format, expected_ms, needed, needed <= free, at_once))
    return tuple(found)


def _has_kernels(machine: Machine) -> bool:
    return machine.gpu is not None and machine.gpu.capability >= LEAST_CAPABILITY


def choose(machine: Machine, wanted: Settings | None = None) -> Choice:
    """The model, device and format that run on ``machine`` with these settings; by default, what ``auto`` takes.

    Raises InputError for a GPU that was asked for and is not there.
    """
    wanted = wanted or Settings(model=AUTO)
    if wanted.device.startswith("cuda") and machine.gpu is None:
        why = f" ({machine.gpu_problem})" if machine.gpu_problem else ""
        raise InputError(
            f"the device {wanted.device} was asked for, but PyTorch finds no such GPU here{why}; use cpu or auto"
        )
    if wanted.device == "cpu":
        machine = replace(machine, gpu=None)
    candidates = weigh(machine, wanted.dtype, kv_cache=wanted.kv_cache)
    if wanted.device.startswith("cuda"):
        candidates = tuple(replace(c, device=wanted.device) for c in candidates if c.device == "cuda")
    best = next((c for c in candidates if c.holds_real_time), None)
    missing = _missing(machine, candidates, best)
    if wanted.model != AUTO:
        return _asked_for(machine, wanted, candidates, missing)
    if best is not None and machine.can_get_weights:
        where = f"the {machine.gpu.name}" if best.device != "cpu" and machine.gpu else "the CPU"
        reason = f"{where} reads a frame's weights in {best.expected_ms:.0f} ms of the {BUDGET_MS:.0f} it lasts"
        return Choice(PUBLISHED, best.device, best.format, reason, best.expected_ms, candidates, missing)
    reason = "it ships with the program and runs faster than real time on one core; "
    reason += (
        "nothing here holds the 7B in real time"
        if best is None
        else "the 7B would run here, but its weights are not at hand"
    )
    device = wanted.device if wanted.device.startswith("cuda") else "cpu"
    format, expected_ms = _nano_cost(machine, device, wanted.dtype)
    return Choice(NANO, device, format, reason, expected_ms, candidates, missing)


def _asked_for(
    machine: Machine, wanted: Settings, candidates: tuple[Candidate, ...], missing: tuple[str, ...]
) -> Choice:
    device, format, expected_ms = wanted.device, wanted.dtype, None
    if device == AUTO:
        device = "cpu" if machine.gpu is None else "cuda"
    if wanted.model == NANO:
        format, expected_ms = _nano_cost(machine, device, wanted.dtype)
    return Choice(wanted.model, device, format, "it was asked for", expected_ms, candidates, missing, asked_for=True)


def choose_on_zerogpu(wanted: Settings) -> Choice:
    """The same where a GPU is lent for each conversation: it cannot be measured beforehand."""
    if wanted.model != AUTO:
        # nano needs no GPU, and so none of its visitors' quota.
        device = "cpu" if wanted.model == NANO and wanted.device == AUTO else wanted.device
        return Choice(wanted.model, device, wanted.dtype, "it was asked for", asked_for=True)
    cached = huggingface_hub.try_to_load_from_cache(PUBLISHED, ModelConfig().files.lm)
    if isinstance(cached, str) or huggingface_hub.get_token() is not None:
        return Choice(PUBLISHED, "cuda", "bfloat16", "a large GPU is lent for each conversation")
    return Choice(NANO, "cpu", AUTO, "the 7B would run here, but its weights are not at hand: set HF_TOKEN")


def nano_instead(refused: Choice, why: str) -> Choice:
    """nano on the CPU, where the weights of the model that ``auto`` took cannot be had."""
    reason = f"{refused.model} would run here, but: {why}"
    return Choice(NANO, "cpu", AUTO, reason, candidates=refused.candidates, missing=refused.missing)


def _nano_cost(machine: Machine, device: str, dtype: str) -> tuple[str, float]:
    """(format, least ms a frame) of nano: as it is stored, unless another format is asked for."""
    nano = ModelConfig.from_json(nano_folder() / CONFIG_NAME)
    stored = nano.quantization.format if nano.quantization else "float32"
    format = stored if dtype == AUTO else dtype
    on_gpu = device.startswith("cuda") and machine.gpu is not None
    bandwidth = machine.gpu.bandwidth_gb_s if on_gpu and machine.gpu else machine.bandwidth_gb_s
    return format, _expected_ms(nano.lm, format, bandwidth)


def _expected_ms(config: LMConfig, format: str, bandwidth_gb_s: float, kv_cache: str = AUTO_CACHE) -> float:
    return 1000 * frame_bytes(config, format, kv_cache=kv_cache) / (max(bandwidth_gb_s, 1e-3) * GB)


def _missing(machine: Machine, candidates: tuple[Candidate, ...], best: Candidate | None) -> tuple[str, ...]:
    notes = []
    if machine.gpu_problem:
        notes.append(f"a GPU: {machine.gpu_problem}")
    if machine.gpu is not None and not _has_kernels(machine):
        notes.append("a GPU from Ampere on (compute capability 8.0) for the 7B in int8 or int4: this one is older")
    if best is None and candidates:
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
