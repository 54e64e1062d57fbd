"""A perceptual loss from Whisper's frozen encoder: the distance of its layers between reconstruction and recording.

`training.codec.listener` learns phones from synthetic voices, whose phones are known. Whisper was trained on people.
The weights are read from CTranslate2's file, which `training.neural_voices` prepares.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.codec.loss import levelled
from training.codec.model import SAMPLE_RATE_HZ
from training.module_lists import of_class

_WINDOW, _HOP, _BANDS, _TOP_HZ = 600, 240, 80, 8_000.0  # at 24 kHz; as 400 and 160 at 16 kHz, bins of 40 Hz
_BINS = int(_TOP_HZ * _WINDOW / SAMPLE_RATE_HZ) + 1
_POWER = (400 / 600) ** 2  # of a window of 400 samples beside one of 600
_EDGE_STEPS = 4  # of 20 ms: at the ends of a crop, where half of what is heard is cut off
_HEAD = 64
HISS = 1e-4  # of full scale's power in a band, about
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<H", file.read(2))
    return file.read(length)[:-1].decode()


def read_weights(path: Path, prefix: str = "encoder/") -> dict[str, np.ndarray]:
    """The tensors of a CTranslate2 `model.bin` whose names begin with `prefix`; ValueError for another version."""
    found = {}
    with open(path, "rb") as file:
        version, kind = struct.unpack("<I", file.read(4))[0], _text(file)
        _, count = struct.unpack("<II", file.read(8))
        if not 2 <= version <= 6:
            raise ValueError(f"{path} is of version {version} ({kind}); 2 to 6 can be read")
        for _ in range(count):
            name, rank = _text(file), file.read(1)[0]
            shape = struct.unpack(f"<{rank}I", file.read(4 * rank))
            dtype, num_bytes = _DTYPES.get(file.read(1)[0]), struct.unpack("<I", file.read(4))[0]
            data = file.read(num_bytes)
            if name.startswith(prefix) and dtype is not None:
                found[name.removeprefix(prefix)] = np.frombuffer(data, dtype).reshape(shape)
    return found


def mel_bands() -> Tensor:
    """[201, 80] float32: Slaney's bands up to 8 kHz, each of one area, as Whisper's features have them."""

    def to_mel(hz: np.ndarray) -> np.ndarray:
        return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1e-3) / 1000) / np.log(6.4))

    def to_hz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) * (mel - 15) / 27))

    edges = to_hz(np.linspace(0.0, float(to_mel(np.array(_TOP_HZ))), _BANDS + 2))
    hz = np.linspace(0.0, _TOP_HZ, _BINS)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.maximum(0, np.minimum((hz - left) / (centre - left), (right - hz) / (right - centre)))
    return torch.from_numpy((triangles * 2 / (right - left)).astype(np.float32))


class _Layer(nn.Module):
    """Pre-norm attention and feed-forward with biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // _HEAD
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, width = x.shape
        q, k, v = self.mixed(self.norm1(x)).view(batch, steps, 3, self.heads, _HEAD).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(_HEAD)).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, steps, width))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class RecogniserListener(nn.Module):
    """Whisper's encoder of any size, on crops as they are (not filled up to 30 s).

    hiss: power that is added to every band. Without it, the logarithm of near silence would be all of the gradient.
    """

    hann: Tensor
    mel: Tensor

    def __init__(self, width: int = 384, layers: int = 4, steps: int = 1500, hiss: float = HISS) -> None:
        super().__init__()
        self.hiss = hiss
        self.register_buffer("hann", torch.hann_window(_WINDOW))
        self.register_buffer("mel", mel_bands())
        self.first, self.second = nn.Conv1d(_BANDS, width, 3, padding=1), nn.Conv1d(width, width, 3, 2, 1)
        self.positions = nn.Parameter(torch.zeros(steps, width))
        self.layers = nn.ModuleList(_Layer(width) for _ in range(layers))
        self.last = nn.LayerNorm(width)

    @classmethod
    def load(cls, folder: Path) -> RecogniserListener:
        """The encoder of a folder in CTranslate2's form, float16 or float32."""
        stored = read_weights(folder / "model.bin")
        depth = len({name.split("/")[0] for name in stored if name.startswith("layer_") and name[6].isdigit()})
        model = cls(stored["conv1/bias"].shape[0], depth, stored["position_encodings/encodings"].shape[0])
        named: dict[str, nn.Conv1d | nn.Linear | nn.LayerNorm] = {
            "conv1": model.first,
            "conv2": model.second,
            "layer_norm": model.last,
        }
        for index, layer in enumerate(of_class(model.layers, _Layer)):
            at = f"layer_{index}"
            named |= {f"{at}/self_attention/layer_norm": layer.norm1, f"{at}/ffn/layer_norm": layer.norm2}
            named |= {f"{at}/self_attention/linear_0": layer.mixed, f"{at}/self_attention/linear_1": layer.out}
            named |= {f"{at}/ffn/linear_0": layer.wide, f"{at}/ffn/linear_1": layer.narrow}
        with torch.no_grad():
            for name, module in named.items():
                weight, bias = ("gamma", "beta") if isinstance(module, nn.LayerNorm) else ("weight", "bias")
                module.weight.copy_(torch.from_numpy(stored[f"{name}/{weight}"].astype(np.float32)))
                assert module.bias is not None
                module.bias.copy_(torch.from_numpy(stored[f"{name}/{bias}"].astype(np.float32)))
            model.positions.copy_(torch.from_numpy(stored["position_encodings/encodings"].astype(np.float32)))
        return model.eval().requires_grad_(False)

    def _heard(self, wave: Tensor) -> Tensor:
        """wave: [B, T] float32 at 24 kHz -> Whisper's log-mel features [B, 80, T / 240]."""
        pieces = F.pad(wave, (_WINDOW // 2, _WINDOW // 2 - _HOP)).unfold(-1, _WINDOW, _HOP)
        bins = torch.view_as_real(torch.fft.rfft(pieces * self.hann)[..., :_BINS])
        power = bins.pow(2).sum(-1) * _POWER @ self.mel
        mel = torch.log10((power + self.hiss).clamp(min=1e-10))
        floor = mel.detach().amax((1, 2), keepdim=True) - 8.0
        return ((torch.maximum(mel, floor) + 4.0) / 4.0).transpose(1, 2)

    def forward(self, wave: Tensor) -> list[Tensor]:
        """wave: [B, T] float32 -> each layer's output, [B, T / 480, width], normalised at every step."""
        x = F.gelu(self.second(F.gelu(self.first(self._heard(wave))))).transpose(1, 2)
        x = x + self.positions[: x.shape[1]]
        made = []
        for layer in self.layers:
            x = layer(x)
            made.append(self.last(x) if layer is self.layers[-1] else F.layer_norm(x, x.shape[-1:]))
        return made

    def compare(self, made: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """made, target: [B, T] float32 -> mean relative distance of the layers' outputs, a scalar from 0 to about 1,
        and the last layer's output for the target: [B, T / 480, width]."""
        made, target = levelled(made, target)
        with torch.no_grad():
            wanted = self(target)
        inside = slice(_EDGE_STEPS, -_EDGE_STEPS)
        apart = [
            (a - b)[:, inside].abs().mean() / b[:, inside].abs().mean() for a, b in zip(self(made), wanted, strict=True)
        ]
        return sum(apart) / len(apart), wanted[-1]


class FeatureTarget:
    """The target for codebook 0: a recogniser's features of each frame, with zero mean and unit variance.

    It teaches codebook 0 what is said in recordings without phone labels (distillation as in Mimi's first codebook:
    Défossez et al. 2024).
    """

    _KEPT = 0.98  # of the statistics, a step

    def __init__(self) -> None:
        self._mean: Tensor | None = None
        self._square: Tensor | None = None

    def distance(self, read: Tensor, features: Tensor) -> Tensor:
        """read: [B, frames, width]; features: [B, 4 frames, width] -> one less their cosine, a scalar."""
        wanted = features.unflatten(1, (read.shape[1], -1)).mean(2)
        with torch.no_grad():
            mean, square = wanted.mean((0, 1)), wanted.pow(2).mean((0, 1))
            if self._mean is not None and self._square is not None:
                mean, square = self._mean.lerp(mean, 1 - self._KEPT), self._square.lerp(square, 1 - self._KEPT)
            self._mean, self._square = mean, square
            wanted = (wanted - mean) / (square - mean**2).clamp(min=1e-4).sqrt()
        return 1.0 - F.cosine_similarity(read, wanted, dim=-1).mean()
