"""What would run on this machine, and why: the cost of a frame, a choice, and a report."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from personaplex.config import NANO, NUM_AGENT_CODEBOOKS, PUBLISHED, LMConfig, ModelConfig
from personaplex.machine.inspect import GB, LEAST_CAPABILITY, Gpu, Machine, driver_too_old, inspect_machine
from personaplex.native.library import native_status
from personaplex.weights.hub import CONFIG_NAME, nano_folder

BUDGET_MS = 1000 * ModelConfig().mimi.frame_sec
"""A frame must be ready in the time it lasts."""

BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5 + 4 / 32}
"""Of a matrix; int4 keeps a scale and an offset in bfloat16 for each group of 32."""

FORMATS = {"cuda": ("bfloat16", "int8", "int4"), "cpu": ("int4", "int8")}
"""Formats tried for the 7B, best first."""

_CACHE_BYTES_PER_VALUE = 2
_OVERHEAD_BYTES = 10**9  # the interpreter, PyTorch, buffers
_REAL_TIME_SHARE = 0.8  # of the budget; the rest is the codec and the unexpected


# ---------------------------------------------------------------------------------- cost


def weights_per_frame(config: LMConfig) -> int:
    """Weights that one frame reads: all of the temporal transformer, the 8 depth steps that matter."""
    temporal = config.num_layers * (4 * config.dim**2 + 3 * config.feedforward_dim * config.dim)
    depth_layer = 4 * config.depformer_dim**2 + 3 * config.depth_feedforward_dim * config.depformer_dim
    depth_step = config.depformer_num_layers * depth_layer + config.depformer_dim * (config.dim + config.card)
    return temporal + config.dim * config.text_card + NUM_AGENT_CODEBOOKS * depth_step


def embedding_weights(config: LMConfig) -> int:
    """Weights that are looked up, not multiplied with; they stay in bfloat16."""
    text, audio = config.text_card + 1, config.card + 1
    temporal = config.dim * (text + config.n_q * audio)
    return temporal + config.depformer_dim * (text + (config.dep_q - 1) * audio)


def cache_bytes(config: LMConfig, context_frames: int | None = None) -> int:
    """Keys and values of a full cache."""
    frames = config.context if context_frames is None else context_frames
    return 2 * config.num_layers * config.dim * _CACHE_BYTES_PER_VALUE * frames


def frame_bytes(config: LMConfig, format: str, context_frames: int | None = None) -> float:
    """Memory one frame reads, with the cache half full."""
    return weights_per_frame(config) * BYTES_PER_WEIGHT[format] + cache_bytes(config, context_frames) / 2


def memory_needed_bytes(config: ModelConfig, format: str, context_frames: int | None = None) -> float:
    """Weights, embeddings, a full cache, the codec and the program itself."""
    matrices = weights_per_frame(config.lm) * BYTES_PER_WEIGHT[format]
    return matrices + 2 * embedding_weights(config.lm) + cache_bytes(config.lm, context_frames) + _OVERHEAD_BYTES


def conversations_at_once(
    config: ModelConfig, format: str, free_bytes: float, bandwidth_gb_s: float, context_frames: int | None = None
) -> int:
    """How many fit into the memory and, with weights read once for all and every cache full, into a frame's time."""
    cache = cache_bytes(config.lm, context_frames)
    room = free_bytes - (memory_needed_bytes(config, format, context_frames) - cache)
    readable = _REAL_TIME_SHARE * BUDGET_MS / 1000 * bandwidth_gb_s * GB
    readable -= weights_per_frame(config.lm) * BYTES_PER_WEIGHT[format]
    return max(0, int(min(room, readable) // cache))


# ---------------------------------------------------------------------------------- choice


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
        return self.fits and self.expected_ms <= _REAL_TIME_SHARE * BUDGET_MS


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


# ---------------------------------------------------------------------------------- report


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
