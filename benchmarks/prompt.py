"""The time to the first frame of a persona's answer, cold and from a snapshot; ends in one JSON line.

    python -m benchmarks.prompt --model 7b-random --dtype bfloat16
    python -m benchmarks.prompt --model nano --threads 1

Cold is all there is to do for a voice and a role that were never heard: encode the recording, compute the
whole prompt, take the snapshot, start from it, hear and say one frame.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from benchmarks.measuring import OtherLoad, facts, note, peak_memory_gb, run_benchmark, summary_ms
from benchmarks.models import Measured, add_model_arguments, open_measured
from personaplex.config import PUBLISHED_WINDOW, ModelConfig
from personaplex.errors import InputError
from personaplex.messages import Voice
from personaplex.session.prompt_frames import PromptBuilder
from personaplex.session.session import Session
from personaplex.session.snapshots import Snapshot
from personaplex.text.prompt import prepare_prompt

ROLE = "You work for First Neuron Bank and your name is Sanni. Help with cards, accounts and loans."
LOUDNESS = 0.1


def main() -> None:
    run_benchmark(measure, arguments())


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--prompt-frames", type=int, default=250, help="of the whole prompt")
    parser.add_argument("--repeats", type=int, default=3, help="of both starts; the medians count")
    return parser.parse_args(words)


def measure(given: argparse.Namespace) -> dict:
    if given.repeats < 1:
        raise InputError("--repeats must be at least 1")
    with open_measured(given, 1, given.context) as measured:
        return _measure(given, measured)


def _measure(given: argparse.Namespace, measured: Measured) -> dict:
    model = measured.model
    session = Session(model, context=given.context, window=PUBLISHED_WINDOW)  # where prompts may have any length
    role_frames = _role_frames(session)
    voice_frames = given.prompt_frames - role_frames
    if voice_frames < 1:
        raise InputError(f"--prompt-frames is {given.prompt_frames}; more than the role's {role_frames} are needed")
    note(f"{model.config.name} as {model.format.value} is ready: prompts of {given.prompt_frames} frames")
    load = OtherLoad()
    times: dict[str, list[float]] = {name: [] for name in ("cold", "prepare", "snapshot", "first_frame")}
    for repeat in range(given.repeats):
        prepare = partial(session.prepare, voice=_voice(model.config, voice_frames, repeat), text=ROLE)
        prepare_ms, snapshot = _timed(prepare)
        cold_start_ms, first_ms = _start(session, snapshot)
        times["prepare"].append(prepare_ms)
        times["cold"].append(prepare_ms + cold_start_ms + first_ms)
        again_ms, snapshot = _timed(prepare)
        start_ms, first_ms = _start(session, snapshot)
        times["snapshot"].append(again_ms + start_ms)
        times["first_frame"].append(first_ms)
    return {
        "benchmark": "prompt",
        **measured.described,
        "context": session.engine.context,
        "prompt_frames": given.prompt_frames,
        "voice_frames": voice_frames,
        "repeats": given.repeats,
        **{name: summary_ms(values) for name, values in times.items()},
        "snapshot_bytes": snapshot.nbytes,
        "other_cores": load.cores(),
        **peak_memory_gb(model.device),
        **facts(measured.machine, model.device),
    }


Made = TypeVar("Made")


def _timed(work: Callable[[], Made]) -> tuple[float, Made]:
    started = time.perf_counter()
    result = work()
    return 1000 * (time.perf_counter() - started), result


def _start(session: Session, snapshot: Snapshot) -> tuple[float, float]:
    """Milliseconds to take a slot and load the snapshot, and of the first frame after it."""
    silence = np.zeros(session.engine.frame_samples, np.float32)
    start_ms, conversation = _timed(lambda: session.start(snapshot))
    with conversation:
        first_ms, _ = _timed(lambda: conversation.step(silence))
    return start_ms, first_ms


def _role_frames(session: Session) -> int:
    """Frames after the voice: a silence, one for each token of the role, another silence."""
    tokens = prepare_prompt(ROLE, session.tokenizer, session.loaded.config.prompt.max_text_tokens).tokens
    return 2 * PromptBuilder(session.loaded.config).silence_frames + len(tokens)


def _voice(config: ModelConfig, frames: int, seed: int) -> Voice:
    """Noise as long as ``frames``: another voice with every seed."""
    generator = torch.Generator().manual_seed(seed)
    pcm = torch.randn(frames * config.mimi.frame_samples, generator=generator) * LOUDNESS
    return Voice(f"noise {seed}", pcm=pcm.numpy())


if __name__ == "__main__":
    main()
