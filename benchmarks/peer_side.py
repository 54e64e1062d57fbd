"""The authors' side of ``benchmarks.peer``: runs in a virtual environment with Kyutai's ``moshi``, knows nothing else.

It builds the published architecture with random weights, runs frames as the authors' program does (the codec
twice over: a second one encodes and decodes every frame and its result is dropped) and prints one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import time
from pathlib import Path

import torch
from moshi.models import LMGen, MimiModel, loaders
from torch import nn

NOISE_VALUES = 1 << 22
CODEC_FRAME_SAMPLES = int(loaders.SAMPLE_RATE / loaders.FRAME_RATE)
CODEC_CODEBOOKS = 8
LOUDNESS = 0.1
ONES = ("alpha", "norm1.weight", "norm2.weight", "cluster_usage", "_initialized")
LAYER_SCALE = 0.01


@torch.no_grad()
def fill(model: nn.Module, noise: torch.Tensor) -> None:
    """Numbers that keep activations near 1, from one block of noise again and again."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        flat = tensor.view(-1)
        if not tensor.is_floating_point():
            continue
        if name.endswith(ONES):
            flat.fill_(1)
        elif name.endswith("bias"):
            flat.fill_(0)
        elif "layer_scale" in name:
            flat.fill_(LAYER_SCALE)
        else:
            summed_over = 1 if "emb" in name else max(math.prod(tensor.shape[1:]), 1)
            block = (noise / math.sqrt(summed_over)).to(tensor.device, tensor.dtype)
            for start in range(0, len(flat), len(block)):
                piece = flat[start : start + len(block)]
                piece.copy_(block[: len(piece)])


def language_model(config: dict, device: str, dtype: torch.dtype) -> nn.Module:
    """The authors' own class, without the minutes their initialisation takes."""
    given = dict(loaders._lm_kwargs) | config
    model = loaders.get_moshi_lm(None, lm_kwargs=given, device="meta", dtype=dtype)
    return model.to_empty(device=device).eval()


def codec(device: str) -> MimiModel:
    return loaders.get_mimi(None, device=device, num_codebooks=CODEC_CODEBOOKS)


def measure(given: argparse.Namespace) -> dict:
    noise = torch.randn(NOISE_VALUES, generator=torch.Generator().manual_seed(0))
    lm = language_model(json.loads(given.config), given.device, getattr(torch, given.dtype))
    codecs = [codec(given.device) for _ in range(2)]
    for model in (lm, *codecs):
        fill(model, noise)
    talker = LMGen(lm, use_sampling=True)
    talker.streaming_forever(1)
    for model in codecs:
        model.streaming_forever(1)
    times: dict[str, list[float]] = {"encode": [], "lm": [], "decode": [], "frame": []}
    with torch.no_grad():
        for index in range(given.warmup + given.frames):
            if index == given.warmup:
                for values in times.values():
                    values.clear()
            frame(codecs, talker, given.device, times)
    return {"times_ms": times, "peak_rss_bytes": peak_rss_bytes(), "versions": versions()}


def frame(codecs: list[MimiModel], talker: LMGen, device: str, times: dict[str, list[float]]) -> None:
    def now() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    pcm = (torch.randn(1, 1, CODEC_FRAME_SAMPLES) * LOUDNESS).to(device)
    started = now()
    codes, _ = (model.encode(pcm) for model in codecs)
    encoded = now()
    tokens = talker.step(codes)
    spoken = now()
    if tokens is not None:
        for model in codecs:
            model.decode(tokens[:, 1 : 1 + CODEC_CODEBOOKS].clamp(min=0)).cpu()
    ended = now()
    for name, start, end in (
        ("encode", started, encoded), ("lm", encoded, spoken), ("decode", spoken, ended), ("frame", started, ended),
    ):  # fmt: skip
        times[name].append(1000 * (end - start))


def peak_rss_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def versions() -> dict[str, str]:
    return {"moshi": importlib.metadata.version("moshi"), "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="{}", help="JSON: keys of the language model that differ from moshi's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--frames", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    print(json.dumps(measure(given)), flush=True)


if __name__ == "__main__":
    main()
