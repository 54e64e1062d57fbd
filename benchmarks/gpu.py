"""Measurements that need a GPU, each a JSON line, in order of importance for when time is short:

    python -m benchmarks.gpu tests frames prompt memory --out OUT    # correct first; then what a conversation costs
    python -m benchmarks.gpu tune --out OUT --seconds 240            # the kernels' tiles: many compilations
    python -m benchmarks.gpu frames slots --tiles OUT/tiles.json --out OUT
    python -m benchmarks.gpu dependent --out OUT                     # alone: if it faults, its process is lost
    python -m benchmarks.gpu jitter offload --tiles OUT/tiles.json --out OUT

Needs PyTorch with CUDA and Triton, and no network. Weights are random, of the 7B's shapes; every slot's
cache is filled to the stated length. A part that would run past ``--seconds`` is left out and says so.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.frame import FRAME, frame_bytes
from benchmarks.kernel_tiles import read_tiles, tune
from benchmarks.measuring import ROOT, note, percentiles_ms, read_bandwidth_gb_s
from benchmarks.models import random_model
from personaplex.config import MimiConfig, ModelConfig
from personaplex.engine.backends.cuda_graphs import FrameGraphs
from personaplex.engine.backends.triton_predictor import KernelOptions, TritonPredictor
from personaplex.engine.engine import Engine
from personaplex.engine.prediction import PlainPredictor, Predictor
from personaplex.machine.inspect import GB
from personaplex.messages import SamplingOptions
from personaplex.nn.linear import use_rows_kernel
from personaplex.nn.packing import WeightFormat
from personaplex.nn.streamed_layers import StreamedLayers
from personaplex.weights.load import LoadedModel

DEVICE = "cuda"
FORMATS = (WeightFormat.BFLOAT16, WeightFormat.INT8, WeightFormat.INT4)
FULL_FRAMES = ModelConfig.personaplex_7b().lm.context
FILLED_FRAMES = (0, 500, FULL_FRAMES)
SLOTS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128)
SLOTS_FILLED = (500, FULL_FRAMES)
PROMPT_FRAMES, PIECE_FRAMES = 250, 64
JITTER_FRAMES = 20_000
FRAMES, WARM_UP = 200, 10
BUDGET_MS = 1000 * MimiConfig().frame_sec
LOUDNESS = 0.1
TESTS_SEC = 240


@dataclass
class Run:
    """A run's output folder, its deadline and the model that is loaded."""

    out: Path
    until: float
    options: KernelOptions
    bandwidth_gb_s: float = 0.0
    _models: dict[WeightFormat, LoadedModel] = field(default_factory=dict)

    def write(self, what: str, **figures: object) -> None:
        line = {"benchmark": f"gpu {what}", "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, **figures}
        with (self.out / "gpu.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps({key: value for key, value in line.items() if key not in ("gpu", "torch")}), flush=True)

    def has(self, seconds: float, what: str) -> bool:
        if time.monotonic() + seconds < self.until:
            return True
        note(f"left out for lack of time: {what}")
        return False

    def model(self, format: WeightFormat) -> LoadedModel:
        """The model in this format; the one loaded before is dropped."""
        if format not in self._models:
            self._models.clear()
            release()
            torch.cuda.reset_peak_memory_stats()
            note(f"making a 7B as {format.value}")
            with TemporaryDirectory() as folder:
                self._models[format] = random_model(ModelConfig.personaplex_7b(), format, DEVICE, Path(folder))
        return self._models[format]

    def engine(
        self,
        model: LoadedModel,
        *,
        slots: int = 1,
        context: int = FULL_FRAMES,
        kernels: bool = True,
        graphs: bool = True,
    ) -> Engine:
        predictor: Predictor
        if kernels:
            predictor = TritonPredictor(model.lm, slots=slots, context=context, device=DEVICE, options=self.options)
        else:
            predictor = PlainPredictor(model.lm)
        use_rows_kernel(model.lm, predictor.prompt_kernel)
        return Engine(
            model.config, model.lm, model.mimi, slots=slots, context=context, device=DEVICE,
            cache_dtype=model.cache_dtype, predictor=predictor, graphs=graphs,
        )  # fmt: skip


# ---------------------------------------------------------------------------------- frames


@torch.inference_mode()
def fill(engine: Engine, filled: int) -> None:
    """Put every slot ``filled`` frames into a conversation, with noise in its caches."""
    stride = engine.config.mimi.resample_stride
    for leaf in engine.state.leaves():
        if leaf.ring_axis is not None:
            leaf.tensor.normal_()
        elif leaf.name.endswith("position"):
            leaf.tensor.fill_(filled * (stride if leaf.name.startswith(("encoder", "decoder")) else 1))
        elif leaf.name == "frames.columns":
            leaf.tensor.zero_()
    for row in range(engine.slots):
        engine.filled.put(row, filled)


def frame_times_ms(engine: Engine, filled: int, frames: int, warm_up: int = WARM_UP) -> list[float]:
    """Each from sound on the host to sound on the host; the caches start again at ``filled`` every 50 frames."""
    sound = torch.randn(16, engine.slots, engine.frame_samples) * LOUDNESS
    everyone = torch.ones(engine.slots, dtype=torch.bool)
    for row in range(engine.slots):
        engine.set_sampling(row, SamplingOptions(seed=row))
    fill(engine, filled)
    times = []
    for index in range(warm_up + frames):
        if index % 50 == 0 and filled < engine.context:
            fill(engine, filled)
            torch.cuda.synchronize()
        started = time.perf_counter()
        out = engine.step(sound[index % 16], everyone)
        assert out.pcm is not None
        out.pcm.cpu(), out.tokens.cpu()
        times.append(1000 * (time.perf_counter() - started))
    return times[warm_up:]


def against_floor(run: Run, engine: Engine, filled: int, times_ms: list[float]) -> dict[str, float]:
    num_bytes = frame_bytes(engine, min(filled + 25, engine.context))[FRAME]
    floor_ms = 1000 * num_bytes / (run.bandwidth_gb_s * GB)
    found = percentiles_ms(times_ms)
    return {
        **found, "bytes": round(num_bytes), "floor_ms": round(floor_ms, 3), "times_floor": found["p50_ms"] / floor_ms,
        "bandwidth_gb_s": round(run.bandwidth_gb_s, 1),
    }  # fmt: skip


def frames(run: Run) -> None:
    """One conversation in every format: the kernels at three lengths, and at one what runs without them."""
    for format in FORMATS:
        if not run.has(60, f"frames as {format.value}"):
            return
        _frames(run, format, "kernels, graphs")
        _frames(run, format, "plain, graphs", kernels=False)
        _frames(run, format, "plain, eager", kernels=False, graphs=False)


def dependent(run: Run) -> None:
    """The same with dependent launch."""
    run.options = replace(run.options, dependent_launch=True)
    for format in FORMATS:
        if run.has(40, f"dependent launch as {format.value}"):
            _frames(run, format, "kernels, graphs, dependent launch")


def _frames(run: Run, format: WeightFormat, how: str, *, kernels: bool = True, graphs: bool = True) -> None:
    model, told = run.model(format), {"how": how, "dtype": format.value, "slots": 1}

    def measure() -> None:
        engine = run.engine(model, kernels=kernels, graphs=graphs)
        for filled in FILLED_FRAMES if kernels else FILLED_FRAMES[1:2]:
            # The plain path records another graph where its bound on the cache changes, 12 frames after 500.
            times = frame_times_ms(engine, filled, FRAMES if graphs else 20, WARM_UP if kernels else 2 * WARM_UP)
            run.write("frame", **told, filled=filled, recorded=recorded(engine),
                      **against_floor(run, engine, filled, times))  # fmt: skip

    try:
        measure()
    except Exception as error:  # the other ways' figures are worth having
        run.write("frame", **told, error=f"{type(error).__name__}: {error}")
    release()


def recorded(engine: Engine) -> bool:
    """Whether frames run as graphs: an engine that cannot record one goes on without."""
    return isinstance(engine.run_frame, FrameGraphs)


def slots(run: Run) -> None:
    """The number of conversations one graph holds: bfloat16 and int8, at 500 frames and full."""
    for format in FORMATS[:2]:
        for filled in SLOTS_FILLED:
            for count in SLOTS:
                if not run.has(25, f"{count} slots as {format.value}, {filled} frames"):
                    return
                p99_ms = _slots_p99_ms(run, format, filled, count)
                release()
                if p99_ms is None or p99_ms > BUDGET_MS:
                    break


def _slots_p99_ms(run: Run, format: WeightFormat, filled: int, count: int) -> float | None:
    """Write down the frame of ``count`` conversations; None where they do not fit."""
    model, told = run.model(format), {"dtype": format.value, "slots": count, "filled": filled}
    try:
        engine = run.engine(model, slots=count, context=FULL_FRAMES if filled == FULL_FRAMES else 1000)
        times = frame_times_ms(engine, filled, 40, 4)
    except RuntimeError as error:  # too little memory, or what a driver or a compiler says
        run.write("slots", **told, fits=False, why=str(error))
        return None
    found = against_floor(run, engine, filled, times)
    run.write("slots", **told, fits=True, recorded=recorded(engine), **found)
    return found["p99_ms"]


def jitter(run: Run) -> None:
    """Twenty thousand frames, back to back, at a constant length of the cache."""
    if not run.has(150, "jitter"):
        return
    engine = run.engine(run.model(FORMATS[0]), context=500)
    found = percentiles_ms(frame_times_ms(engine, 500, JITTER_FRAMES, 50))
    over_p50 = round(found["p999_ms"] / found["p50_ms"], 2)
    run.write("jitter", dtype=FORMATS[0].value, frames=JITTER_FRAMES, **found, p999_over_p50=over_p50)


def prompt(run: Run) -> None:
    """250 forced frames in pieces, as a session makes them, and the same from a snapshot; each ends with a frame."""
    for format in FORMATS:
        if not run.has(45, f"prompt as {format.value}"):
            return
        engine = run.engine(run.model(format))
        known = torch.randint(0, 2048, (PROMPT_FRAMES, 17))
        voice = torch.randn(PROMPT_FRAMES // 2 * engine.frame_samples) * LOUDNESS
        everyone, sound = torch.ones(1, dtype=torch.bool), torch.randn(1, engine.frame_samples) * LOUDNESS
        found: dict[str, list[float]] = {"cold": [], "encode": [], "snapshot": []}
        for _ in range(8):
            with _timed(found["encode"]):
                sum(len(codes) for codes in engine.encode(voice))
            with _timed(found["cold"]):
                engine.reset(0)
                for piece in known.split(PIECE_FRAMES):
                    engine.prefill_frames(0, piece)
                engine.reset_codec(0)
                engine.set_sampling(0, SamplingOptions())
                engine.step(sound, everyone)
            snapshot = engine.export(0)
            with _timed(found["snapshot"]):
                engine.load(0, snapshot)
                engine.set_sampling(0, SamplingOptions())
                engine.step(sound, everyone)
        figures = {f"{name}_ms": round(float(torch.tensor(values[2:]).median()), 2) for name, values in found.items()}
        run.write(
            "prompt", dtype=format.value, prompt_frames=PROMPT_FRAMES, encoded_frames=PROMPT_FRAMES // 2, **figures
        )


def release() -> None:
    """Give memory back: an engine and its graphs hold each other."""
    gc.collect()
    torch.cuda.empty_cache()


class _timed:
    """Adds the milliseconds of a block, the device's work included, to a list."""

    def __init__(self, to: list[float]):
        self._to = to

    def __enter__(self) -> None:
        torch.cuda.synchronize()
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        torch.cuda.synchronize()
        self._to.append(1000 * (time.perf_counter() - self._started))


def memory(run: Run) -> None:
    """GPU memory of a model with one full cache and its graph."""
    for format in FORMATS:
        if not run.has(30, f"memory as {format.value}"):
            return
        model = run.model(format)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        engine = run.engine(model)
        frame_times_ms(engine, FULL_FRAMES, 20)
        free, total = torch.cuda.mem_get_info()
        run.write(
            "memory", dtype=format.value, filled=FULL_FRAMES,
            allocated_gb=round(torch.cuda.memory_allocated() / GB, 2),
            peak_allocated_gb=round(torch.cuda.max_memory_allocated() / GB, 2),
            reserved_gb=round(torch.cuda.memory_reserved() / GB, 2), device_gb=round((total - free) / GB, 2),
        )  # fmt: skip
        del engine
        release()


def offload(run: Run) -> None:
    """Layers that stream from host memory: all, half and none kept."""
    for format in (FORMATS[0], FORMATS[2]):
        for kept in (16, 0):
            if not run.has(60, f"offload as {format.value}, {kept} layers kept"):
                return
            run._models.clear()
            model = run.model(format)
            layers = StreamedLayers(model.lm.temporal.layers, kept, DEVICE)
            model.lm.temporal.layers = layers
            torch.cuda.empty_cache()
            engine = run.engine(model)
            found = percentiles_ms(frame_times_ms(engine, 500, 50))
            rate = layers.host_bytes / GB / (found["p50_ms"] / 1000)
            run.write(
                "offload", dtype=format.value, layers_on_gpu=kept, host_gb=round(layers.host_bytes / GB, 2),
                host_gb_s=round(rate, 1), allocated_gb=round(torch.cuda.memory_allocated() / GB, 2), **found,
            )  # fmt: skip
            del engine
            release()
    run._models.clear()


# ---------------------------------------------------------------------------------- parts


def tests(run: Run) -> None:
    """The tests marked ``cuda``; their report is kept beside the figures."""
    words = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-m", "cuda and not slow", "-p", "no:cacheprovider"]
    words += ["-k", "not compile_for_a_hopper"]  # that needs no GPU, and minutes
    if importlib.util.find_spec("xdist"):
        words += ["-n", "8"]  # compiling is what takes the time
    started, report, code = time.monotonic(), run.out / "tests.txt", None
    with report.open("w", encoding="utf-8") as file, suppress(subprocess.TimeoutExpired):
        code = subprocess.run(
            [*words, "tests/test_cuda.py", "tests/test_triton.py"], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
            check=False, timeout=TESTS_SEC,
        ).returncode  # fmt: skip
    print(report.read_text(encoding="utf-8")[-4000:], flush=True)
    run.write("tests", passed=code == 0, seconds=round(time.monotonic() - started, 1))


def tiles(run: Run) -> None:
    """Measure how each product is best cut up, for one slot and for several."""
    for format in FORMATS:
        if not run.has(90, f"tiles for {format.value}"):
            return
        for line in tune(format, run.out / "tiles.json", until=run.until):
            run.write("tile", **line)
    run.options = KernelOptions(tiles=read_tiles(run.out / "tiles.json"))


PARTS: dict[str, Callable[[Run], None]] = {
    "tests": tests, "tune": tiles, "frames": frames, "prompt": prompt, "memory": memory, "slots": slots,
    "dependent": dependent, "jitter": jitter, "offload": offload,
}  # fmt: skip


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of gpu.jsonl, tiles.json and tests.txt")
    parser.add_argument("--tiles", type=Path, help="tiles.json of an earlier tune")
    parser.add_argument("--seconds", type=float, default=560, help="for all parts together")
    return parser.parse_args(words)


def main() -> None:
    given = arguments()
    if not torch.cuda.is_available():
        note("error: PyTorch finds no GPU here")
        raise SystemExit(2)
    given.out.mkdir(parents=True, exist_ok=True)
    tiles_of = read_tiles(given.tiles) if given.tiles else {}
    run = Run(given.out, time.monotonic() + given.seconds, KernelOptions(tiles=tiles_of))
    run.bandwidth_gb_s = read_bandwidth_gb_s(DEVICE)
    run.write("bandwidth", read_gb_s=round(run.bandwidth_gb_s, 1))
    for part in given.parts:
        try:
            release()
            PARTS[part](run)
        except Exception as error:  # the other parts' figures are worth having
            run.write(part, error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
