"""The engine's streaming codec with the weights of an exported folder: the reference for the fast form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from personaplex.config import MimiConfig, ModelConfig
from personaplex.models.mimi import Mimi
from personaplex.nn.packing import WeightFormat
from personaplex.weights.checkpoint import Checkpoint
from personaplex.weights.entries import LoadOptions, check_names_and_shapes, load_weights
from training.codec.export import CODEC_FILE, CONFIG_FILE


def mimi_config(folder: Path) -> MimiConfig:
    """The codec's part of a folder's config.json, whatever else the file lacks."""
    section = json.loads((folder / CONFIG_FILE).read_text())["mimi"]
    data = {"mimi": section, "lm": {"card": section["codebook_size"]}}
    return ModelConfig.from_dict(data).mimi


def load_mimi(folder: Path) -> Mimi:
    """The codec of a folder that may hold no language model yet; WeightsError where the tensors are not its own."""
    mimi, file = Mimi(mimi_config(folder)), Checkpoint.open(folder, CODEC_FILE)
    entries = mimi.checkpoint_entries()
    check_names_and_shapes(entries, file.tensors, None, str(folder / CODEC_FILE))
    load_weights(file, entries, LoadOptions(WeightFormat.FLOAT32, "cpu", parameter_dtype=torch.float32))
    return mimi.eval()


class StreamingCodec:
    """One stream at a time, `chunk_frames` a call: one as in a conversation, more to be quicker at the same answer."""

    def __init__(self, folder: Path, *, chunk_frames: int = 1) -> None:
        self._mimi, self._chunk_frames = load_mimi(folder), chunk_frames
        self._on = torch.ones(1, dtype=torch.bool)

    @torch.inference_mode()
    def encode(self, recording: np.ndarray) -> np.ndarray:
        """recording: [T] float32 -> codes [8, frames] int16; a last, partial frame is filled with zeros."""
        samples = self._mimi.config.frame_samples
        chunk = self._chunk_frames * samples
        wave = torch.from_numpy(np.pad(recording, (0, -len(recording) % samples)))
        state = self._mimi.encoder_state(1)
        codes = [self._mimi.encode(frame[None], state, self._on)[0] for frame in wave.split(chunk)]
        return torch.cat(codes, 1).to(torch.int16).numpy()

    @torch.inference_mode()
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """codes: [8, frames] -> [T] float32."""
        state = self._mimi.decoder_state(1)
        columns = torch.from_numpy(codes.astype(np.int64))[None].split(self._chunk_frames, 2)
        return torch.cat([self._mimi.decode(column, state, self._on)[0] for column in columns]).numpy()
