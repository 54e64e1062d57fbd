"""Report of a machine and of the choice that was made for it, for ``doctor`` and the page."""

from __future__ import annotations

from personaplex.audio.cleaning import HOW_TO_GET, can_clean
from personaplex.machine.choose import Candidate, Choice
from personaplex.machine.cost import BUDGET_MS
from personaplex.machine.inspect import GB, Machine
from personaplex.machine.load import crowded
from personaplex.native.library import native_status
from personaplex.settings import AUTO
from personaplex.words import recogniser


def report(machine: Machine, choice: Choice) -> list[tuple[str, str]]:
    """(what, finding) in reading order, for the terminal and for the page."""
    rows = [
        ("system", f"{machine.system}, {machine.versions}"),
        ("processor", f"{machine.processor}, {machine.cores} cores for this program"),
        ("load", _load_line(machine)),
        ("CPU code", native_status()),
        ("memory", _memory_line(machine)),
        ("memory speed", f"{machine.bandwidth_gb_s:.0f} GB/s read, measured"),
        ("GPU", _gpu_line(machine)),
        ("hub token", "set" if machine.has_token else "none"),
        ("7B weights", "in the cache" if machine.weights_cached else "not in the cache"),
        ("disk", f"{machine.free_disk_bytes / GB:.0f} GB free for downloads"),
    ]
    kinds = ", ".join(recogniser.available())
    rows.append(("your words", kinds or f"nothing to write them down ({recogniser.HOW_TO_GET})"))
    rows.append(("echo canceller", "here" if can_clean() else f"not installed ({HOW_TO_GET})"))
    for candidate in choice.candidates:
        rows.append((f"7B {candidate.format} on {candidate.device}", _candidate_line(candidate)))
    rows.append(("runs" if choice.asked_for else "auto takes", choice_line(choice)))
    rows += [("missing", note) for note in choice.missing]
    return rows


def choice_line(choice: Choice) -> str:
    """The choice in one line, as ``doctor``, ``reply`` and the log say it."""
    how = "" if choice.format == AUTO else f" as {choice.format}"
    where = "" if choice.device == AUTO else f" on {choice.device}"
    cost = (
        "" if choice.expected_ms is None else f", at least {choice.expected_ms:.1f} ms a frame (budget {BUDGET_MS:.0f})"
    )
    return f"{choice.model}{how}{where}{cost}: {choice.reason}"


def _load_line(machine: Machine) -> str:
    if machine.busy_cores is None:
        return "this system does not say"
    used = f"other programs keep {machine.busy_cores:.1f} of {machine.cores} cores busy"
    return crowded(machine.busy_cores, machine.cores) or used


def _memory_line(machine: Machine) -> str:
    if not machine.memory_bytes:
        return "this system does not say"
    return f"{machine.free_memory_bytes / GB:.1f} of {machine.memory_bytes / GB:.1f} GB free"


def _gpu_line(machine: Machine) -> str:
    gpu, problem = machine.gpu, f"; {machine.gpu_problem}" if machine.gpu_problem else ""
    if gpu is None:
        return f"none that PyTorch can use{problem}"
    return (
        f"{gpu.name}, {gpu.free_bytes / GB:.1f} of {gpu.memory_bytes / GB:.1f} GB free, "
        f"{gpu.bandwidth_gb_s:.0f} GB/s read, measured{problem}"
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
