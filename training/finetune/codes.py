"""Recordings through the model's own codec, as it runs in a conversation; made once and kept beside the data."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from personaplex.config import ModelConfig
from personaplex.models.mimi import Mimi
from personaplex.personas.voices import voice_from_file
from training.finetune.recordings import Recording

PIECE_FRAMES = 25
_NAME_DIGITS = 12


class CodeBook:
    """Encodes recordings and voice prompts; recordings' codes are cached beside them."""

    def __init__(self, config: ModelConfig, mimi: Mimi, device: str = "cpu") -> None:
        self.config, self._mimi, self._device = config, mimi, device
        digest = hashlib.sha256()
        for entry in mimi.checkpoint_entries():
            if entry.parameter is not None:
                digest.update(getattr(*entry.parameter).detach().cpu().contiguous().numpy().tobytes())
        self._codec = digest.digest()

    def conversation(self, recording: Recording) -> Tensor:
        """[2, 8, F] int64: agent, user; each channel one stream from its first sample, the last frame zero-filled."""
        pcm = torch.from_numpy(recording.read(self.config.mimi.sample_rate))
        return self._kept(recording.path, lambda: self._encode(pcm))

    def voice(self, path: Path) -> Tensor:
        """[F, 8] int64: a voice prompt at the prompt's loudness, encoded as one stream."""
        return self._kept(path, lambda: self._encode(self._voice_pcm(path)[None]))[0].t()

    def _voice_pcm(self, path: Path) -> Tensor:
        return torch.from_numpy(voice_from_file(path, config=self.config).pcm)

    def _kept(self, path: Path, encode) -> Tensor:
        digest = hashlib.sha256(self._codec)
        digest.update(f"{self.config.prompt.voice_lufs}".encode())
        digest.update(path.read_bytes())
        kept = path.with_name(f"{path.stem}.{digest.hexdigest()[:_NAME_DIGITS]}.codes.npy")
        if not kept.exists():
            partial = kept.with_suffix(".part.npy")
            np.save(partial, encode().cpu().numpy().astype(np.int16))
            partial.rename(kept)
        return torch.from_numpy(np.load(kept).astype(np.int64))

    @torch.inference_mode()
    def _encode(self, pcm: Tensor) -> Tensor:
        """pcm [S, N] float32 in −1..1, S streams → [S, 8, F] int64."""
        frame = self.config.mimi.frame_samples
        streams, samples = pcm.shape
        pcm = torch.nn.functional.pad(pcm, (0, -samples % frame)).to(self._device)
        state = self._mimi.encoder_state(streams, self._device)
        active = torch.ones(streams, dtype=torch.bool, device=self._device)
        return torch.cat([self._mimi.encode(p, state, active) for p in pcm.split(PIECE_FRAMES * frame, 1)], 2)
