"""The time of a frame and of its stages against the memory-bandwidth floor; ends in one JSON line.

    python -m benchmarks.frame --model 7b-random --dtype int4 --context 1000 --frames 100
    python -m benchmarks.frame --model nano --threads 1
    python -m benchmarks.frame --model 7b-random --device cuda --dtype bfloat16 --slots 32 --context 500
    python -m benchmarks.frame --model 7b-random --dtype int4 --filled 0 --beside 1
    python -m benchmarks.frame --model 7b-random --dtype int4 --kept 250

The engine is a real one with real state: every slot's caches are filled to ``--filled`` frames (all
of ``--context`` if not given), and each frame hears noise and speaks. Compiled code runs the language model in one
call; ``--plain`` runs PyTorch's operators instead, whose temporal and depth transformers are timed apart.
``--beside N`` measures the frames a second time while N processes keep a core each busy, and says how many times the
quiet ones they take. ``--kept N`` measures them again in turns, with a prompt of N frames that stays in a full cache
and without one, and says how many times as long the former take.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.measuring import (
    OtherLoad,
    Stages,
    busy_processes,
    clock_for,
    facts,
    note,
    peak_memory_gb,
    read_bandwidth_gb_s,
    run_benchmark,
    summary_ms,
)  # fmt: skip
from benchmarks.models import Measured, add_model_arguments, open_measured
from personaplex.config import CACHE_SCALE_BYTES
from personaplex.engine.backends.cpu_codec import NativeCodec
from personaplex.engine.engine import Engine, Snapshot
from personaplex.engine.prediction import PlainPredictor
from personaplex.engine.telling import LEAST_LIVE_FRAMES
from personaplex.errors import InputError
from personaplex.machine.inspect import GB
from personaplex.messages import SamplingOptions
from personaplex.nn.cache_rows import stored
from personaplex.nn.linear import linear_bytes
from personaplex.nn.state import State

STAGES = ("encode", "language_model", "temporal", "depth", "decode")
FRAME = "frame"
MOST_BESIDE = 64
NOISE_BLOCK = 1 << 20
LOUDNESS = 0.1
KEPT_TURNS = 3


def main() -> None:
    run_benchmark(measure, arguments())


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--slots", type=int, default=1, help="conversations in one step")
    parser.add_argument("--filled", type=int, help="frames in the cache when the first frame comes; all if not given")
    parser.add_argument("--frames", type=int, default=100, help="measured, after --warmup")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--beside", type=int, default=0, help="busy processes, pinned to a core each, in a second run")
    parser.add_argument("--kept", type=int, default=0, help="frames of a prompt that stays, in further runs in turns")
    parser.add_argument("--plain", action="store_true", help="PyTorch's operators even where there is compiled code")
    return parser.parse_args(words)


def measure(given: argparse.Namespace) -> dict:
    if given.frames < 1 or given.warmup < 0:
        raise InputError("--frames must be at least 1 and --warmup at least 0")
    if not 0 <= given.beside <= MOST_BESIDE:
        raise InputError(f"--beside is {given.beside}; 0 to {MOST_BESIDE} processes are allowed")
    with open_measured(given, given.slots, given.context) as measured:
        return _measure(given, measured)


def _measure(given: argparse.Namespace, measured: Measured) -> dict:
    model = measured.model
    engine = Engine(
        model.config, model.lm, model.mimi, slots=given.slots, context=given.context,
        cache_dtype=model.cache_dtype, device=model.device, predictor=PlainPredictor(model.lm) if given.plain else None,
    )  # fmt: skip
    if given.plain:
        engine.codec = model.mimi
    predictor = type(engine.predictor).__name__
    filled = engine.context if given.filled is None else given.filled
    if not 0 <= filled <= engine.context:
        raise InputError(f"--filled is {filled} frames; 0 to {engine.context}, the length of the cache, are allowed")
    most = max(0, min(filled, engine.context - LEAST_LIVE_FRAMES))
    if not 0 <= given.kept <= most:
        raise InputError(f"--kept is {given.kept} frames; 0 to {most} are allowed with {filled} of {engine.context}")
    start_all(engine, filled)
    note(f"{model.config.name} as {model.format.value} is ready: {given.frames} frames")
    load = OtherLoad()
    times_ms = time_frames(engine, given.warmup, given.frames)
    other_cores, memory = load.cores(), peak_memory_gb(model.device)
    beside = _beside(engine, given, summary_ms(times_ms[FRAME])["p50_ms"]) if given.beside else None
    kept = _kept(engine, given, filled) if given.kept else None
    bandwidth = read_bandwidth_gb_s(model.device)
    sizes = frame_bytes(engine, filled + given.warmup + given.frames / 2)
    stages = {
        name: _against_floor(times_ms[name], sizes[name], bandwidth) if name in times_ms else None
        for name in (*STAGES, FRAME)
    }
    return {
        "benchmark": "frame",
        **measured.described,
        "predictor": predictor,
        "slots": given.slots,
        "context": engine.context,
        "filled": filled,
        "frames": given.frames,
        "bandwidth_gb_s": round(bandwidth, 2),
        "budget_ms": 1000 * model.config.mimi.frame_sec,
        **stages,
        "beside": beside,
        "kept": kept,
        "other_cores": other_cores,
        **memory,
        **facts(measured.machine, model.device),
    }


def _beside(engine: Engine, given: argparse.Namespace, quiet_ms: float) -> dict:
    """The same frames while processes keep cores busy, and their median over the quiet one."""
    with busy_processes(given.beside):
        found = summary_ms(time_frames(engine, given.warmup, given.frames)[FRAME])
    return {"processes": given.beside, **found, "times_quiet": round(found["p50_ms"] / quiet_ms, 2)}


def _kept(engine: Engine, given: argparse.Namespace, filled: int) -> dict:
    """The frames with a prompt that stays, and their median over those without, both in turns."""
    times_ms: dict[int, list[float]] = {0: [], given.kept: []}
    for _ in range(KEPT_TURNS):
        for kept, times in times_ms.items():
            start_all(engine, filled)
            engine.state.temporal.kept[:] = engine.state.temporal.held[:] = kept
            times += time_frames(engine, given.warmup, given.frames)[FRAME]
    without, found = (summary_ms(times) for times in times_ms.values())
    return {"prompt": given.kept, **found, "times_without": round(found["p50_ms"] / without["p50_ms"], 3)}


def _against_floor(times_ms: list[float], num_bytes: float, bandwidth: float) -> dict:
    """Percentiles, and the floor's share of the median."""
    found = summary_ms(times_ms)
    floor_ms = 1000 * num_bytes / (bandwidth * GB)
    return {
        **found,
        "bytes": round(num_bytes),
        "gb_s": round(num_bytes / GB / (found["p50_ms"] / 1000), 2),
        "floor_ms": round(floor_ms, 3),
        "share_of_floor": round(floor_ms / found["p50_ms"], 3),
    }


# ---------------------------------------------------------------------------------- frames


def start_all(engine: Engine, filled: int) -> None:
    """Put every slot ``filled`` frames into a conversation."""
    steps = {"temporal": 1, "frames": 1, "encoder": engine.config.mimi.resample_stride}
    steps["decoder"] = steps["encoder"]
    noise = torch.randn(NOISE_BLOCK, generator=torch.Generator().manual_seed(0))
    room = {leaf.name: leaf for leaf in engine.state.leaves()}
    for row in range(engine.slots):
        before = engine.export(row)
        tensors = dict(before.tensors)
        for name, tensor in tensors.items():
            part, leaf = name.split(".")[0], room[name]
            if leaf.ring_axis is not None:
                shape = list(leaf.tensor.shape[1:])
                shape[leaf.ring_axis - 1] = min(filled * steps[part], shape[leaf.ring_axis - 1])
                tensors[name] = _noise(noise, shape, tensor.dtype)
                if tensor.dtype is torch.int8:  # rows of the language model's cache, with their scales
                    shape[-1] -= CACHE_SCALE_BYTES
                    tensors[name] = stored(_noise(noise, shape, torch.float32), torch.int8)
            elif name.endswith("position"):
                tensors[name] = torch.full_like(tensor, filled * steps[part])
            elif name == "frames.columns":
                tensors[name] = torch.zeros_like(tensor)
        engine.load(row, Snapshot(tensors, before.noise))
        engine.set_sampling(row, SamplingOptions(seed=row))


def _noise(block: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    count = torch.Size(shape).numel()
    values = block.repeat(-(-count // len(block)))[:count].view(shape)
    return values.to(dtype) if dtype.is_floating_point else values.mul(30).to(dtype)


def time_frames(engine: Engine, warmup: int, frames: int) -> dict[str, list[float]]:
    """Milliseconds of each stage and of each whole frame, which ends when its sound is on the host.

    On a GPU the whole frames come first, as they run in a conversation (CUDA graphs, where there are any), and
    the stages of as many eager frames after them: nothing can be timed inside a graph.
    """
    stages = Stages(clock_for(engine.device))
    if engine.device == "cpu":
        with _watched(engine, stages):
            whole_ms = _run(engine, warmup, frames, stages)
    else:
        whole_ms = _run(engine, warmup, frames, stages)
        usual = engine.run_frame
        engine.run_frame = lambda pcm, uniform, active, span: engine.frame(
            pcm.to(engine.device), uniform.to(engine.device), active.to(engine.device), span
        )
        with _watched(engine, stages):
            _run(engine, warmup, frames, stages)
        engine.run_frame = usual
    return {**stages.ms(), FRAME: whole_ms}


@contextmanager
def _watched(engine: Engine, stages: Stages) -> Iterator[None]:
    """The engine with its stages timed, and as it was afterwards: it may be measured again."""
    codec = getattr(engine, "codec", engine.mimi)
    with (
        stages.watching(codec, "encode", "encode"),
        stages.watching(engine, "predictor", "language_model"),
        stages.watching(engine.lm.temporal, "step", "temporal"),
        stages.watching(engine.lm.depth, "forward", "depth"),
        stages.watching(codec, "decode", "decode"),
    ):
        yield


def _run(engine: Engine, warmup: int, frames: int, stages: Stages) -> list[float]:
    """Milliseconds of each whole frame after the warm-up; what ``stages`` saw before that is forgotten."""
    generator = torch.Generator().manual_seed(1)
    everyone = torch.ones(engine.slots, dtype=torch.bool)
    whole_ms = []
    for index in range(warmup + frames):
        pcm = torch.randn(engine.slots, engine.frame_samples, generator=generator) * LOUDNESS
        if index == warmup:
            stages.marks.clear()
        started = time.perf_counter()
        out = engine.step(pcm, everyone)
        assert out.pcm is not None
        out.pcm.cpu(), out.tokens.cpu()
        whole_ms.append(1000 * (time.perf_counter() - started))
    return whole_ms[warmup:]


# ---------------------------------------------------------------------------------- bytes


@dataclass(frozen=True)
class _Part:
    """Modules that a stage runs, and the state it reads."""

    modules: tuple[nn.Module, ...]
    state: State


def frame_bytes(engine: Engine, filled: float) -> dict[str, float]:
    """Bytes each stage of a frame must read: its weights once, and the filled part of each slot's cache."""
    mimi, lm, state = engine.mimi, engine.lm, engine.state
    stride = engine.config.mimi.resample_stride
    encoder = (mimi.encoder, mimi.encoder_transformer, mimi.downsample, mimi.quantizer)
    decoder = (mimi.upsample, mimi.decoder_transformer, mimi.decoder)
    sizes = {
        "encode": sum(map(_all_bytes, encoder)) + _ring_bytes(state.encoder, filled * stride),
        "temporal": linear_bytes(lm.temporal) + _ring_bytes(state.temporal, filled),
        "depth": linear_bytes(lm.depth),
        "decode": sum(map(_all_bytes, decoder)) + _ring_bytes(state.decoder, filled * stride),
    }
    if isinstance(engine.codec, NativeCodec):
        for direction in ("encode", "decode"):
            sizes[direction] -= engine.codec.narrow_numbers(direction)  # 24 bits of 32
    return {**sizes, "language_model": sizes["temporal"] + sizes["depth"], FRAME: sum(sizes.values())}


def _all_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _ring_bytes(state: State, filled: float) -> float:
    found = 0.0
    for leaf in state.leaves():
        if leaf.ring_axis is not None:
            length = leaf.tensor.shape[leaf.ring_axis]
            found += leaf.tensor.nbytes * min(filled, length) / length
    return found


if __name__ == "__main__":
    main()
