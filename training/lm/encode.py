"""Encodes the spoken streams: `python -m training.lm.encode --codec PATH --speech DIR`.

Every stream is encoded from its first sample on, as the streaming codec would. The agent's streams
are encoded again at a slightly different speed: new codes for little work; and as their echo, which the user's
microphone hears when there is a loudspeaker. Shards that are encoded already are skipped, unless the codec's
constants changed.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soxr
import torch

from personaplex.native.process import KEPT_FOR_TRAINING, keep_freed_memory
from training import surroundings
from training.codec.export import any_codec
from training.lm.clips import ECHO_SUFFIX
from training.precision import autocast, fastest_dtype
from training.tts import SAMPLE_RATE_HZ

log = logging.getLogger(__name__)

Encoder = Callable[[torch.Tensor], torch.Tensor]  # [B, T] float32 -> [B, 8, frames] int64


@dataclass(frozen=True)
class EncodeOptions:
    processes: int = 2
    batch: int = 1  # streams at a time
    agent_variants: int = 1
    echoes: bool = True
    compile: bool = True


_BUCKET_FRAMES = 50  # streams are filled up to multiples of it, so that few lengths are compiled
SINE_HZ = 440.0
SINE_AMPLITUDE = 0.5
STEADY_SEC = 20.0
CPU = torch.device("cpu")
SHARD_NAMES = "*_[0-9][0-9][0-9][0-9].npy"


def steady_codes(encode: Encoder, pcm: np.ndarray) -> list[int]:
    """The commonest code of each codebook over the second half of a stream: what a steady sound becomes."""
    codes = encode(torch.from_numpy(pcm.astype(np.float32))[None])[0]
    half = codes[:, codes.shape[1] // 2 :]
    return [Counter(row.tolist()).most_common(1)[0][0] for row in half]


def constants(encode: Encoder) -> dict[str, list[int]]:
    time_sec = np.arange(int(STEADY_SEC * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return {
        "silence_codes": steady_codes(encode, np.zeros_like(time_sec)),
        "sine_codes": steady_codes(encode, SINE_AMPLITUDE * np.sin(2 * np.pi * SINE_HZ * time_sec)),
    }


def played_faster(pcm: np.ndarray, description: list[dict], speed: float) -> tuple[np.ndarray, list[dict]]:
    """The streams [N, T] of a shard at another speed (and pitch), with their times."""
    faster = soxr.resample(pcm.T.astype(np.float32), SAMPLE_RATE_HZ * speed, SAMPLE_RATE_HZ).T
    told = []
    for stream in description:
        clips = [
            {
                **clip,
                "start_sec": clip["start_sec"] / speed,
                "end_sec": clip["end_sec"] / speed,
                "words": [(text, start_sec / speed) for text, start_sec in clip["words"]],
            }
            for clip in stream["clips"]
        ]
        told.append({**stream, "clips": clips, "end_sec": stream["end_sec"] / speed})
    return np.ascontiguousarray(faster), told


def encode_streams(encode: Encoder, pcm: np.ndarray, batch: int) -> np.ndarray:
    """pcm: [N, T] on the int16 scale -> codes [N, 8, frames] int16."""
    parts = [
        encode(torch.from_numpy(pcm[at : at + batch].astype(np.float32)) / 32768.0) for at in range(0, len(pcm), batch)
    ]
    return torch.cat(parts).numpy().astype(np.int16)


def with_echoes(pcm: np.ndarray, seed: str) -> np.ndarray:
    """The streams [N, T] on the int16 scale as microphones beside loudspeakers hear them, each in another room."""
    draw = np.random.default_rng(random.Random(seed).getrandbits(32))
    return np.stack([surroundings.echo(row.astype(np.float32) / 32768.0, draw) for row in pcm]) * 32768.0


def encode_shard(path: Path, encode: Encoder, batch: int, variants: int, echoes: bool = False) -> float:
    """Encodes one shard as it is and at `variants` other speeds, and as its echo; returns the seconds encoded."""
    pcm, description, encoded_sec = None, json.loads(path.with_suffix(".json").read_text()), 0.0
    for variant in range(1 + variants):
        target = path.with_name(path.stem + (f"v{variant}" if variant else "") + ".codes.npy")
        if target.exists():
            continue
        pcm = np.load(path) if pcm is None else pcm
        played, told = pcm, description
        if variant:
            rng = random.Random(target.name)
            played, told = played_faster(pcm, description, 1 + rng.choice((-1, 1)) * rng.uniform(0.02, 0.05))
            target.with_name(target.name.replace(".codes.npy", ".json")).write_text(json.dumps(told))
        partial = target.with_suffix(".tmp.npy")
        np.save(partial, encode_streams(encode, played, batch))
        partial.rename(target)
        encoded_sec += played.size / SAMPLE_RATE_HZ
    target = path.with_name(path.stem + ECHO_SUFFIX)
    if echoes and not target.exists():
        pcm = np.load(path) if pcm is None else pcm
        np.save(partial := target.with_suffix(".tmp.npy"), encode_streams(encode, with_echoes(pcm, target.name), batch))
        partial.rename(target)
        encoded_sec += pcm.size / SAMPLE_RATE_HZ
    return encoded_sec


def write_constants(folder: Path, encode: Encoder) -> None:
    """Writes the codec's silence and sine codes; where another codec made the shards' codes, they are deleted."""
    found = constants(encode)
    log.info("%s", json.dumps(found))
    known = folder / "constants.json"
    if not known.exists() or json.loads(known.read_text()) != found:
        for codes in [*folder.glob("*.codes.npy"), *folder.glob(f"*{ECHO_SUFFIX}")]:
            codes.unlink()
    known.write_text(json.dumps(found))


def encode_folder(folder: Path, codec: Path, options: EncodeOptions) -> None:
    """Encodes every shard that is not encoded yet."""
    write_constants(folder, load_encoder(codec))
    paths = sorted(folder.glob(SHARD_NAMES))
    random.Random(0).shuffle(paths)  # so that any part of the work is a balanced sample
    jobs = [(path, codec, options) for path in paths]
    started, encoded_sec = time.monotonic(), 0.0
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for done, seconds in enumerate(pool.imap_unordered(_encode_job, jobs), 1):
            encoded_sec += seconds
            spent_sec = time.monotonic() - started
            log.info("%d of %d shards, %.2f h in %.0f s", done, len(jobs), encoded_sec / 3600, spent_sec)


def _encode_job(job: tuple[Path, Path, EncodeOptions]) -> float:
    path, codec, options = job
    torch.set_num_threads(1)
    keep_freed_memory(KEPT_FOR_TRAINING)
    is_agent = path.name.startswith("agent")
    variants = options.agent_variants if is_agent else 0
    encode = load_encoder(codec, options.compile)
    return encode_shard(path, encode, options.batch, variants, options.echoes and is_agent)


@cache
def load_encoder(path: Path, compile: bool = False) -> Encoder:
    """From a checkpoint of `training.codec.train`, or from a folder of `training.codec.export`.

    `compile`: three times as fast on a CPU, after a minute for each length of streams; five times where products in
    bfloat16 are fast, which changes 2 % of the first codebook's codes and 18 % of the last one's.
    """
    codec = any_codec(path)
    latents = torch.compile(codec.encode, dynamic=False) if compile else codec.encode
    dtype = fastest_dtype(CPU, (torch.float32, torch.bfloat16)) if compile else torch.float32

    @torch.inference_mode()
    def encode(pcm: torch.Tensor) -> torch.Tensor:
        frame = codec.shape.frame_samples
        frames = -(-pcm.shape[1] // frame)
        filled = -(-frames // _BUCKET_FRAMES) * _BUCKET_FRAMES if compile else frames
        pcm = torch.nn.functional.pad(pcm, (0, filled * frame - pcm.shape[1]))
        with autocast(CPU, dtype):
            found = latents(pcm)
        return codec.quantizer.encode(found.float())[..., :frames]

    return encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--codec", type=Path, required=True, help="a codec's checkpoint or exported folder")
    parser.add_argument("--speech", type=Path, default=Path("build/nano/speech"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=EncodeOptions.batch)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--variants", type=int, default=1, help="further readings of each agent shard, by speed")
    parser.add_argument("--no-echoes", action="store_true", help="without the agent's echoes")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = EncodeOptions(
        arguments.processes, arguments.batch, arguments.variants, not arguments.no_echoes, not arguments.no_compile
    )
    encode_folder(arguments.speech, arguments.codec, options)


if __name__ == "__main__":
    main()
