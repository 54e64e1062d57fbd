"""Quality lost by each format of weights and cache against float32; ends in one JSON line.

    python -m benchmarks.quality --model golden
    python -m benchmarks.quality --model nano --question examples/questions/bank.wav --tail 4

The float32 model holds a conversation greedily. Every format is then made to say the same, frame by
frame (teacher-forced), and its logits are compared: the largest and the mean difference, the
Kullback-Leibler divergence in nats, and how often both find the same token likeliest. A format
loaded a second time is compared with itself: that must give exactly 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.measuring import ROOT, facts, note, run_benchmark
from personaplex.audio.files import read_recording
from personaplex.audio.frames import split_frames
from personaplex.config import AUTO_CACHE, KV_CACHES, PUBLISHED_WINDOW, checked_kv_cache
from personaplex.engine.columns import live_frame
from personaplex.engine.engine import Snapshot
from personaplex.engine.prediction import StepOutput
from personaplex.errors import InputError
from personaplex.machine.choose import inspect_here
from personaplex.messages import SamplingOptions, Voice
from personaplex.nn.packing import WeightFormat
from personaplex.personas.voices import VoiceFinder, voice_from_file
from personaplex.session.session import Session
from personaplex.weights.folder import ModelFiles
from personaplex.weights.hub import resolve_model
from personaplex.weights.load import LoadedModel, load_model

GOLDEN = "golden"
GOLDEN_FOLDER = ROOT / "tests" / "golden"
ROLE = "You work for First Neuron Bank and your name is Sanni."
REFERENCE = WeightFormat.FLOAT32
FORMATS = tuple(format.value for format in WeightFormat)


def main() -> None:
    run_benchmark(measure, arguments())


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help=f"{GOLDEN}, nano, or a model's folder")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--question", type=Path, help="a recording to answer; one of the examples if not given")
    parser.add_argument("--tail", type=float, default=4.0, help="seconds of silence after it")
    parser.add_argument("--frames", type=int, help="at most so many; all if not given")
    parser.add_argument("--formats", default=",".join(FORMATS), help="comma-separated")
    parser.add_argument("--kv-caches", default=",".join(KV_CACHES), help="types of the cache, comma-separated")
    parser.add_argument("--group-sizes", default="32,128", help="of int4, comma-separated")
    return parser.parse_args(words)


@dataclass(frozen=True)
class Logits:
    """The logits of T frames of a conversation."""

    text: Tensor  # [T, text_card] float32
    audio: Tensor  # [T, 8, card] float32


def measure(given: argparse.Namespace) -> dict:
    folder = GOLDEN_FOLDER if given.model == GOLDEN else resolve_model(given.model).folder
    question = given.question or _default_question(given.model)
    reference = _Conversation(_load(folder, REFERENCE.value, None, given.device), folder)
    heard = reference.hear(question, given.tail, given.frames)
    said = reference.say(heard)
    wanted = reference.repeat(said)
    del reference
    rows = []
    for format, group_size, kv_cache in _variants(given):
        models = (_load(folder, format, group_size, given.device, kv_cache) for _ in range(2))
        found = [_Conversation(model, folder).repeat(said) for model in models]
        rows.append(
            {
                "dtype": format,
                "group_size": group_size,
                "kv_cache": kv_cache,
                "text": drift(found[0].text, wanted.text),
                "audio": drift(found[0].audio, wanted.audio),
                "against_itself_max": max(
                    float((found[0].text - found[1].text).abs().max()),
                    float((found[0].audio - found[1].audio).abs().max()),
                ),
            }
        )
        note(f"{format} {group_size or ''}, cache {kv_cache}: {rows[-1]['text']}")
    return {
        "benchmark": "quality",
        "model": given.model,
        "frames": len(wanted.text),
        "stored_as": _stored_as(folder),
        "formats": rows,
        **facts(inspect_here(), given.device),
    }


def drift(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """Of logits [..., V] from those wanted; ``kl`` is of the found distributions from the wanted ones, in nats."""
    difference = (found - wanted).abs()
    log_found, log_wanted = found.double().log_softmax(-1), wanted.double().log_softmax(-1)
    kl = (log_wanted.exp() * (log_wanted - log_found)).sum(-1).clamp(min=0)
    return {
        "max": float(difference.max()),
        "mean": float(difference.mean()),
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
        "greedy_agreement": float((found.argmax(-1) == wanted.argmax(-1)).double().mean()),
    }


def _variants(given: argparse.Namespace) -> list[tuple[str, int | None, str]]:
    formats = given.formats.split(",")
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown:
        raise InputError(f"--formats names {', '.join(unknown)}; allowed: {', '.join(FORMATS)}")
    sizes = [int(size) for size in given.group_sizes.split(",")]
    int4 = WeightFormat.INT4.value
    caches = [checked_kv_cache(kv_cache) for kv_cache in given.kv_caches.split(",")]
    return [
        (format, size, kv_cache)
        for format in formats for size in (sizes if format == int4 else [None]) for kv_cache in caches
    ]  # fmt: skip


def _load(folder: Path, format: str, group_size: int | None, device: str, kv_cache: str = AUTO_CACHE) -> LoadedModel:
    return load_model(folder, format=format, group_size=group_size, device=device, kv_cache=kv_cache)


def _stored_as(folder: Path) -> str:
    """Format of the file's linear weights: they were rounded before float32 saw them."""
    files = ModelFiles.open(folder)
    stored = files.config.quantization
    return stored.format if stored else str(files.auto_format("cuda").value)


def _default_question(model: str) -> Path:
    return GOLDEN_FOLDER / "user.wav" if model == GOLDEN else ROOT / "examples" / "questions" / "bank.wav"


class _Conversation:
    """One prompted slot of a model."""

    def __init__(self, model: LoadedModel, folder: Path):
        self._session = Session(model, window=PUBLISHED_WINDOW)  # the golden prompt is longer than its context
        snapshot = self._session.prepare(voice=_voice(model, folder), text=ROLE)
        self._engine = self._session.engine
        self._prompted: Snapshot = snapshot

    def hear(self, question: Path, tail_sec: float, most: int | None) -> Tensor:
        """The user's side as codes [T, 8] int64."""
        mimi = self._session.loaded.config.mimi
        pcm = read_recording(question).pcm
        pcm = np.concatenate([pcm, np.zeros(round(tail_sec * mimi.sample_rate), np.float32)])
        frames = split_frames(pcm, mimi.frame_samples)[:most]
        return torch.cat(list(self._engine.encode(torch.from_numpy(np.concatenate(list(frames))))))

    def say(self, heard: Tensor) -> Tensor:
        """The model's greedy answer: all tokens of the T − 1 complete frames, [T − 1, 17]."""
        columns = [out.tokens[0] for out in self._steps(live_frame(heard))]
        return torch.stack(columns[1:])  # a call returns the frame before its own

    def repeat(self, said: Tensor) -> Logits:
        """The logits while it is made to say the tokens [T, 17]."""
        outputs = [(out.text_logits.cpu(), out.audio_logits.cpu()) for out in self._steps(said)]
        text, audio = zip(*outputs, strict=True)
        return Logits(torch.cat(text), torch.cat(audio))

    def _steps(self, known: Tensor) -> Iterator[StepOutput]:
        """One call of the engine per frame, from the prompted state on: known [T, 17]."""
        self._engine.load(0, self._prompted)
        self._engine.set_sampling(0, SamplingOptions(greedy=True))
        active = torch.ones(1, dtype=torch.bool)
        for frame in known:
            yield self._engine.step_tokens(frame[None], active)


def _voice(model: LoadedModel, folder: Path) -> Voice | None:
    if folder == GOLDEN_FOLDER:
        return voice_from_file(folder / "voices" / "VOICE.wav", config=model.config)
    return VoiceFinder(model.config, model.home, folder, model.unpack_voice).find(None)


if __name__ == "__main__":
    main()
