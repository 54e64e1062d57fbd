"""Whether two recordings are of one voice: cosine similarity of speaker embeddings.

Two encoders, neither of which is needed for the rest:

* ``ge2e``: the network of Wan et al. 2018 (arXiv 1710.10467) with the weights that the package Resemblyzer
  carries. The package itself is never imported (it wants a compiler and an old setuptools), only its weights
  are read: ``pip install --no-deps Resemblyzer==0.1.4``.
* a folder or hub name of ``WavLMForXVector`` weights (such as microsoft/wavlm-base-plus-sv): the family that
  published similarities are made with; needs ``pip install transformers``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.duplex.metrics import Span
from benchmarks.duplex.speech_activity import SAMPLE_RATE_HZ
from personaplex.errors import InputError

GE2E = "ge2e"
MIN_SPEECH_SEC = 0.8  # with less, an embedding says little
_WINDOW, _HOP, _MELS = 400, 160, 40  # 25 ms, 10 ms
_PARTIAL_FRAMES, _PARTIAL_STEP_FRAMES, _MIN_COVERAGE = 160, 77, 0.75
_LEVEL_DB = -30.0

Encoder = Callable[[np.ndarray], np.ndarray]
"""[N] float32 at 16 kHz, speech only → [D] float32 of length 1."""


class Ge2e(nn.Module):
    """Mel frames → LSTM → a direction in 256 dimensions; the mean of overlapping stretches of 1.6 s."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(_MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    @classmethod
    def load(cls, path: Path) -> Ge2e:
        model = cls()
        state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
        model.load_state_dict({name: state[name] for name in model.state_dict()})
        return model.eval()

    def forward(self, mels: Tensor) -> Tensor:
        """[P, frames, 40] float32 → [P, 256] of length 1."""
        _, (hidden, _) = self.lstm(mels)
        return nn.functional.normalize(self.linear(hidden[-1]).relu(), dim=1)

    @torch.inference_mode()
    def embed(self, pcm: np.ndarray) -> np.ndarray:
        level_db = 10 * np.log10(np.mean(np.square(pcm, dtype=np.float64)) + 1e-20)
        pcm = pcm * 10 ** (max(0.0, _LEVEL_DB - level_db) / 20)  # soft speech is raised, loud speech left
        starts = _partials(len(pcm))
        pcm = np.pad(pcm, (0, max(0, (starts[-1] + _PARTIAL_FRAMES) * _HOP - len(pcm))))
        mel = librosa.feature.melspectrogram(
            y=pcm.astype(np.float32), sr=SAMPLE_RATE_HZ, n_fft=_WINDOW, hop_length=_HOP, n_mels=_MELS
        ).T.astype(np.float32)
        partials = np.stack([mel[start : start + _PARTIAL_FRAMES] for start in starts])
        mean = self(torch.from_numpy(partials)).mean(dim=0)
        return nn.functional.normalize(mean, dim=0).numpy()


def _partials(num_samples: int) -> list[int]:
    """First frames of the stretches that cover a recording; a last one that is mostly padding is left out."""
    num_frames = -(-(num_samples + 1) // _HOP)
    starts = list(range(0, max(1, num_frames - _PARTIAL_FRAMES + _PARTIAL_STEP_FRAMES + 1), _PARTIAL_STEP_FRAMES))
    covered = (num_samples - starts[-1] * _HOP) / (_PARTIAL_FRAMES * _HOP)
    return starts[:-1] if len(starts) > 1 and covered < _MIN_COVERAGE else starts


def find_encoder(given: str = GE2E) -> Encoder | None:
    """None when the usual weights are not installed; raises InputError for others that cannot be had."""
    if given == GE2E:
        package = importlib.util.find_spec("resemblyzer")  # found, not imported
        weights = Path(package.origin).parent / "pretrained.pt" if package and package.origin else None
        return Ge2e.load(weights).embed if weights and weights.is_file() else None
    return _wavlm(given)


def _wavlm(source: str) -> Encoder:
    try:
        from transformers import AutoFeatureExtractor, WavLMForXVector
    except ImportError:
        raise InputError(f"the voice encoder {source!r} needs `pip install transformers`") from None
    try:
        extract, model = AutoFeatureExtractor.from_pretrained(source), WavLMForXVector.from_pretrained(source).eval()
    except (OSError, ValueError) as error:
        raise InputError(f"{source!r} holds no WavLM x-vector weights: {error}") from error

    @torch.inference_mode()
    def embed(pcm: np.ndarray) -> np.ndarray:
        inputs = extract(pcm, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        return nn.functional.normalize(model(**inputs).embeddings[0], dim=0).numpy()

    return embed


def speech_only(pcm: np.ndarray, speech: list[Span]) -> np.ndarray | None:
    """The stretches of speech one after another; None when they are too short to tell a voice."""
    parts = [pcm[round(start * SAMPLE_RATE_HZ) : round(end * SAMPLE_RATE_HZ)] for start, end in speech]
    joined = np.concatenate([*parts, np.zeros(0, np.float32)])
    return joined if len(joined) >= MIN_SPEECH_SEC * SAMPLE_RATE_HZ else None
