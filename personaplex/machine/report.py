"""The findings of ``doctor`` in reading order, for the terminal and the page."""

from __future__ import annotations

from personaplex.machine.choose import Candidate, Choice
from personaplex.machine.cost import BUDGET_MS
from personaplex.machine.inspect import GB, Gpu, Machine, driver_too_old
from personaplex.native.library import native_status


def report(machine: Machine, choice: Choice) -> list[tuple[str, str]]:
    """The same for the terminal and the page: (what, finding) in reading order."""
    rows = [
        ("system", f"{machine.system}, {machine.versions}"),
        ("processor", f"{machine.processor}, {machine.cores} cores for this program"),
        ("CPU code", native_status()),
        ("memory", _memory_line(machine)),
        ("memory speed", f"{machine.bandwidth_gb_s:.0f} GB/s read, measured"),
        ("GPU", _gpu_line(machine.gpu)),
        ("hub token", "set" if machine.has_token else "none"),
        ("7B weights", "in the cache" if machine.weights_cached else "not in the cache"),
        ("disk", f"{machine.free_disk_bytes / GB:.0f} GB free for downloads"),
    ]
    for candidate in choice.candidates:
        rows.append((f"7B {candidate.format} on {candidate.device}", _candidate_line(candidate)))
    taken = f"{choice.model} as {choice.format} on {choice.device}, at least {choice.expected_ms:.1f} ms a frame"
    rows.append(("auto takes", f"{taken} (budget {BUDGET_MS:.0f}): {choice.reason}"))
    rows += [("missing", note) for note in choice.missing]
    return rows


def _memory_line(machine: Machine) -> str:
    if not machine.memory_bytes:
        return "this system does not say"
    return f"{machine.free_memory_bytes / GB:.1f} of {machine.memory_bytes / GB:.1f} GB free"


def _gpu_line(gpu: Gpu | None) -> str:
    if gpu is None:
        return "none that PyTorch can use" + driver_too_old()
    return (
        f"{gpu.name}, {gpu.free_bytes / GB:.1f} of {gpu.memory_bytes / GB:.1f} GB free, "
        f"{gpu.bandwidth_gb_s:.0f} GB/s read, measured"
    )


def _candidate_line(candidate: Candidate) -> str:
    if not candidate.fits:
        verdict = "does not fit"
    elif candidate.holds_real_time:
        many = candidate.conversations
        verdict = f"holds real time, {many} conversations at once" if many > 1 else "holds real time"
    else:
        verdict = "too slow to talk live"
    return (
        f"at least {candidate.expected_ms:.0f} ms a frame (budget {BUDGET_MS:.0f}), "
        f"{candidate.memory_bytes / GB:.1f} GB: {verdict}"
    )
