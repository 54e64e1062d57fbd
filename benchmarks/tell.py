"""How late a frame is when a conversation is told something before it; ends in one JSON line.

    python -m benchmarks.tell --model nano --threads 2
    python -m benchmarks.tell --model 7b-random --dtype int4 --context 1000 --tokens 20 --times 5

The cache is full, ``--prompt`` frames of it are kept, and a text of ``--tokens`` is told before one frame. That frame
is late by the time of the telling and by what it takes longer itself than another one (``frame``): the text is moved to
the entries that are kept. ``held`` is the frame in which the text's keys are turned to the prompt's distance, later.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.frame import LOUDNESS, start_all
from benchmarks.measuring import OtherLoad, facts, note, run_benchmark, summary_ms
from benchmarks.models import Measured, add_model_arguments, open_measured
from personaplex.config import MOST_TOLD_TOKENS
from personaplex.engine.engine import Engine, Snapshot
from personaplex.engine.prediction import StepOutput
from personaplex.engine.telling import HELD_NAME, KEPT_NAME, LEAST_LIVE_FRAMES
from personaplex.errors import InputError
from personaplex.session.prompt_frames import PromptBuilder

WARM_UP_FRAMES = 5
ORDINARY_FRAMES = 20
ON = torch.ones(1, dtype=torch.bool)


def main() -> None:
    run_benchmark(measure, arguments())


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument(
        "--tokens", type=int, default=20, help="of the text, its tags included; 20 say a short sentence"
    )
    parser.add_argument("--prompt", type=int, default=150, help="frames that are kept before the text is told")
    parser.add_argument("--times", type=int, default=20, help="how often it is told, each time to the same state")
    return parser.parse_args(words)


def measure(given: argparse.Namespace) -> dict:
    if not 1 <= given.tokens <= MOST_TOLD_TOKENS or given.times < 1:
        raise InputError(f"--tokens must be 1 to {MOST_TOLD_TOKENS} and --times at least 1")
    with open_measured(given, 1, given.context) as measured:
        return _measure(given, measured)


def _measure(given: argparse.Namespace, measured: Measured) -> dict:
    model = measured.model
    engine = Engine(
        model.config, model.lm, model.mimi, context=given.context, cache_dtype=model.cache_dtype, device=model.device
    )
    room = engine.context - LEAST_LIVE_FRAMES
    if not 1 <= given.prompt <= room - given.tokens:
        raise InputError(f"--prompt and --tokens must be {room} together at most, of a context of {engine.context}")
    started = _started(engine, given.prompt)
    text = PromptBuilder(model.config).text([3] * given.tokens)
    note(f"{model.config.name} as {model.format.value} is ready: told {given.times} times")
    load = OtherLoad()
    ordinary_ms = [_frame_ms(engine) for _ in range(WARM_UP_FRAMES + ORDINARY_FRAMES)][WARM_UP_FRAMES:]
    usual_ms = statistics.median(ordinary_ms)
    telling_ms, late_ms, held_ms = [], [], []
    for _ in range(given.times):
        engine.load(0, started)
        telling_ms.append(_timed_ms(lambda: engine.tell(0, text)))
        late_ms.append(telling_ms[-1] + max(_frame_ms(engine) - usual_ms, 0.0))
        held_ms.append(_held_ms(engine))
    return {
        "benchmark": "tell",
        **measured.described,
        "predictor": type(engine.predictor).__name__,
        "context": engine.context,
        "prompt_frames": given.prompt,
        "tokens": given.tokens,
        "times": given.times,
        "frame": summary_ms(ordinary_ms),
        "telling": summary_ms(telling_ms),
        "late": summary_ms(late_ms),
        "held": summary_ms(held_ms),
        "other_cores": load.cores(),
        **facts(measured.machine, model.device),
    }


def _started(engine: Engine, prompt_frames: int) -> Snapshot:
    """A conversation whose cache is full and keeps its first frames."""
    start_all(engine, engine.context)
    started = engine.export(0)
    kept = torch.tensor(prompt_frames)
    return Snapshot({**started.tensors, KEPT_NAME: kept, HELD_NAME: kept}, started.noise)


def _held_ms(engine: Engine) -> float:
    """The time of the frame in which the text that was told last is held, skipping those until then."""
    temporal = engine.state.temporal
    snapshot = engine.export(0)
    until = engine.context - 1 + int(temporal.lag[0, 0])
    tensors = {**snapshot.tensors, "temporal.position": torch.tensor(until)}
    engine.load(0, Snapshot(tensors, snapshot.noise))
    held_before = int(temporal.held[0])
    taken_ms = _frame_ms(engine)
    assert int(temporal.held[0]) > held_before, "the text was held in this frame"
    return taken_ms


def _frame_ms(engine: Engine) -> float:
    pcm = torch.randn(1, engine.frame_samples) * LOUDNESS
    return _timed_ms(lambda: engine.step(pcm, ON))


def _timed_ms(work: Callable[[], StepOutput]) -> float:
    """Milliseconds until the work's sound is on the host."""
    started = time.perf_counter()
    sound = work().pcm
    assert sound is not None, "a whole frame has sound"
    sound.cpu()
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    main()
