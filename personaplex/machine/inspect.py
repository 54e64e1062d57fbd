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
from personaplex.machine.load import OtherPrograms

log = logging.getLogger(__name__)

GB = 10**9
_PROBE_BYTES = 1 << 28  # more than a processor's caches hold
_PROBE_SEC = 0.5
NEWEST_CUDA = "13.0"
"""Of the PyTorch builds that ``requirements.txt`` allows."""

LEAST_CAPABILITY = (8, 0)
"""Of a GPU whose tensor cores multiply bfloat16 (Ampere): the Triton kernels need it."""


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_bytes: int
    free_bytes: int
    bandwidth_gb_s: float
    capability: tuple[int, int] = LEAST_CAPABILITY


@dataclass(frozen=True)
class Machine:
    """The facts that the choice depends on."""

    system: str
    versions: str
    processor: str
    cores: int
    memory_bytes: int
    free_memory_bytes: int
    bandwidth_gb_s: float  # measured: memory read by all cores at once
    gpu: Gpu | None = None
    gpu_problem: str = ""  # why a GPU that is here cannot be used, and what to do
    has_token: bool = False
    weights_cached: bool = False  # of the published model
    free_disk_bytes: int = 0  # where a download would go
    busy_cores: float | None = None  # by other programs, while it was looked at; None: not known

    @property
    def can_get_weights(self) -> bool:
        return self.weights_cached or self.has_token


def inspect_machine(repo: str, file: str, device: str = "cuda") -> Machine:
    """Look at this machine; takes about a second, needs no network. ``repo``, ``file``: the weights to look for.

    ``device``: the GPU that is meant, where there are several; any other value means the first.
    """
    others = OtherPrograms()
    total, free = _memory_bytes()
    gpu, gpu_problem = _gpu(device if device.startswith("cuda") else "cuda")
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        versions=f"Python {platform.python_version()}, PyTorch {torch.__version__}",
        processor=_processor_name(),
        cores=usable_cores(),
        memory_bytes=total,
        free_memory_bytes=free,
        bandwidth_gb_s=measure_bandwidth_gb_s("cpu"),
        gpu=gpu,
        gpu_problem=gpu_problem,
        has_token=huggingface_hub.get_token() is not None,
        weights_cached=_is_cached(repo, file),
        free_disk_bytes=free_bytes(Path(constants.HF_HUB_CACHE)),
        busy_cores=others.busy_cores(),
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


def _gpu(device: str = "cuda") -> tuple[Gpu | None, str]:
    """(the GPU, what is wrong with it): no GPU where this PyTorch cannot compute on it, or none is here."""
    if not torch.cuda.is_available():
        return None, _unusable_driver()
    try:
        capability = torch.cuda.get_device_capability(device)
        problem = _build_problem(capability)
        if not _build_has_code_for(capability):
            return None, f"{torch.cuda.get_device_name(device)}: {problem}"
        free, total = torch.cuda.mem_get_info(device)
        bandwidth_gb_s = measure_bandwidth_gb_s(device, min(4 * _PROBE_BYTES, free // 4))
        torch.cuda.empty_cache()  # the probe's memory would be missing from what is free later
        return Gpu(torch.cuda.get_device_name(device), total, free, bandwidth_gb_s, capability), problem
    except (RuntimeError, AssertionError) as error:  # out of memory, a full GPU's driver; a number there is no GPU of
        advice = "end what else runs on it to use it" if "memory" in str(error) else "this PyTorch may not support it"
        problem = f"{first_line(str(error))}; {advice}"
        log.warning("the GPU is left out: %s", problem)
        return None, problem


_LEAST_CUDA = (((12, 1), "13.0"), ((12, 0), "12.8"), ((11, 0), "13.0"), ((10, 0), "12.8"))
"""(compute capability, first CUDA whose compilers know it), newest first: GB10; RTX 50 and RTX PRO; Thor; B200."""


def _build_has_code_for(capability: tuple[int, int]) -> bool:
    """Machine code runs on later capabilities of its major version, PTX on all later ones."""
    kinds = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name) for name in torch.cuda.get_arch_list()]
    built = [(kind[1], (int(kind[2]), int(kind[3]))) for kind in kinds if kind]
    return not built or any(of <= capability and (kind == "compute" or of[0] == capability[0]) for kind, of in built)


def _build_problem(capability: tuple[int, int]) -> str:
    """Which PyTorch a GPU needs instead of this one; "" if this one will do.

    A build for an older CUDA may run on a newer GPU of the same major version, but its Triton cannot compile for it.
    """
    least = next((cuda for of, cuda in _LEAST_CUDA if capability >= of), None)
    has = f"compute capability {capability[0]}.{capability[1]} needs"
    if least is not None and _version(torch.version.cuda or "0") < _version(least):
        return f"{has} a PyTorch for CUDA {least} or newer; this is {torch.__version__}: {_install_for(least)}"
    return "" if _build_has_code_for(capability) else f"{has} another PyTorch: {torch.__version__} has no code for it"


def _install_for(cuda: str) -> str:
    return f"pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu{cuda.replace('.', '')}"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def _unusable_driver() -> str:
    """Why an NVIDIA GPU may be here and PyTorch finds none; "" where there is no driver of it."""
    driver = _text("/proc/driver/nvidia/version")
    if not driver or torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"an NVIDIA driver is here, but this PyTorch is a build without CUDA: {_install_for(NEWEST_CUDA)}"
    version = next(iter(re.findall(r"\b\d{3}\.[\d.]+\b", driver)), "?")
    return f"the NVIDIA driver {version} is too old for PyTorch's CUDA {torch.version.cuda}, or gives no access"


def _is_cached(repo: str, file: str) -> bool:
    return isinstance(huggingface_hub.try_to_load_from_cache(repo, file), str)


def usable_cores() -> int:
    """Cores this process may use: fewer than the machine has, in a container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _words("/sys/fs/cgroup/cpu.max")
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def free_memory_bytes() -> int:
    """Memory that this process may still take; zero where the system does not say."""
    return _memory_bytes()[1]


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
