"""Facts about this machine: processor, memory and its speed, GPU, what the hub's cache holds."""

from __future__ import annotations

import logging
import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub import constants

from personaplex.errors import first_line
from personaplex.files import free_bytes

log = logging.getLogger(__name__)

GB = 10**9
_PROBE_BYTES = 1 << 28  # more than a processor's caches hold
_PROBE_SEC = 0.5

LEAST_CAPABILITY = (8, 0)
"""Of a GPU that multiplies bfloat16 numbers on its tensor cores: without it there are no kernels of ours."""


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_bytes: int
    free_bytes: int
    bandwidth_gb_s: float
    capability: tuple[int, int] = LEAST_CAPABILITY


@dataclass(frozen=True)
class Machine:
    """What the choice depends on."""

    system: str
    versions: str
    processor: str
    cores: int
    memory_bytes: int
    free_memory_bytes: int
    bandwidth_gb_s: float  # measured: memory read by all cores at once
    gpu: Gpu | None = None
    has_token: bool = False
    weights_cached: bool = False  # of the published model
    free_disk_bytes: int = 0  # where a download would go

    @property
    def can_get_weights(self) -> bool:
        return self.weights_cached or self.has_token


def inspect_machine(repo: str, file: str, device: str = "cuda") -> Machine:
    """Look at this machine; takes about a second, reads no network. ``repo``, ``file``: the weights to look for.

    ``device``: the GPU that is meant, where there are several.
    """
    total, free = _memory_bytes()
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        versions=f"Python {platform.python_version()}, PyTorch {torch.__version__}",
        processor=_processor_name(),
        cores=_usable_cores(),
        memory_bytes=total,
        free_memory_bytes=free,
        bandwidth_gb_s=measure_bandwidth_gb_s("cpu"),
        gpu=_gpu(device if device.startswith("cuda") else "cuda"),
        has_token=huggingface_hub.get_token() is not None,
        weights_cached=_is_cached(repo, file),
        free_disk_bytes=free_bytes(Path(constants.HF_HUB_CACHE)),
    )


def measure_bandwidth_gb_s(device: str, num_bytes: int = _PROBE_BYTES) -> float:
    """Best of several reads of one large tensor, in about a second."""
    block = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    best_sec = float("inf")
    enough = time.perf_counter() + _PROBE_SEC
    while time.perf_counter() < enough or best_sec == float("inf"):
        started = time.perf_counter()
        block.sum().item()
        best_sec = min(best_sec, time.perf_counter() - started)
    return num_bytes / best_sec / GB


def _gpu(device: str = "cuda") -> Gpu | None:
    """None also where it has no memory left to be looked at: what runs on the processor does not need it."""
    if not torch.cuda.is_available():
        return None
    try:
        free, total = torch.cuda.mem_get_info(device)
        bandwidth_gb_s = measure_bandwidth_gb_s(device, min(4 * _PROBE_BYTES, free // 4))
        torch.cuda.empty_cache()  # or whoever asks for the free memory later would miss the probe's
    except RuntimeError as error:  # torch.OutOfMemoryError is one, and so is what a full GPU's driver says
        advice = "end what else runs on it to use it" if "memory" in str(error) else "this PyTorch may not support it"
        log.warning("the GPU is left out: %s; %s", first_line(str(error)), advice)
        return None
    return Gpu(
        torch.cuda.get_device_name(device), total, free, bandwidth_gb_s, torch.cuda.get_device_capability(device)
    )


def driver_too_old() -> str:
    """Why an NVIDIA GPU may be there and unusable, as more words of a sentence; "" where there is none."""
    driver = _text("/proc/driver/nvidia/version")
    if torch.version.cuda is None or not driver or torch.cuda.is_available():
        return ""
    version = next(iter(re.findall(r"\b\d{3}\.[\d.]+\b", driver)), "?")
    return f"; the NVIDIA driver {version} is too old for PyTorch's CUDA {torch.version.cuda}, or gives no access"


def _is_cached(repo: str, file: str) -> bool:
    return isinstance(huggingface_hub.try_to_load_from_cache(repo, file), str)


def _usable_cores() -> int:
    """Cores this process may use: fewer than the machine has, in a container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _words("/sys/fs/cgroup/cpu.max")
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def _memory_bytes() -> tuple[int, int]:
    """(total, free); zero where the system does not say."""
    lines = {line.split(":")[0]: line for line in _text("/proc/meminfo").splitlines()}
    if "MemTotal" not in lines:
        try:
            pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            pages = 0
        return pages, pages
    total, free = (int(lines[key].split()[1]) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit = _words("/sys/fs/cgroup/memory.max")
    if limit and limit[0].isdigit():
        used = _words("/sys/fs/cgroup/memory.current")
        total = min(total, int(limit[0]))
        free = min(free, total - int(used[0]) if used else total)
    return total, max(free, 0)


def _processor_name() -> str:
    for line in _text("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _words(path: str) -> list[str]:
    return _text(path).split()


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
