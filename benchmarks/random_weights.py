"""Write a model of random weights in the published layout, to measure memory and speed without the real ones.

    python -m benchmarks.random_weights /tmp/big                  # the 7B: 17 GB, bfloat16
    python -m benchmarks.random_weights /tmp/small --config tests/golden/config.json --dtype float32

Weights are stretches of one block of normal numbers, scaled: quick to make, and little is in memory at once.
The tokenizer is the one of ``tests/golden`` with made-up words up to the model's size.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from personaplex.config import ModelConfig
from personaplex.models.language_model import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.nn.weight_entry import WeightEntry
from personaplex.weights.checkpoint import TensorInfo, write_tensors

TOKENIZER = Path(__file__).resolve().parents[1] / "tests" / "golden" / "tokenizer_spm_32k_3.model"
PIECE_VALUES = 1 << 22
BLOCK_VALUES = 1 << 23

ONES = ("alpha", "norm1.weight", "norm2.weight", "cluster_usage", "_initialized")
ZEROS = ("bias",)
LAYER_SCALE = 0.01


def write_random_model(folder: Path, config: ModelConfig, dtype: torch.dtype, seed: int) -> int:
    """Fill ``folder`` and return the bytes of its weights. The codec is float32, as published."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1) + "\n", encoding="utf-8")
    text = grown_tokenizer(TOKENIZER.read_bytes(), config.lm.text_card)
    (folder / config.files.tokenizer).write_bytes(text)
    files = (
        (config.files.lm, LanguageModel(config.lm).checkpoint_entries(), dtype),
        (config.files.mimi, Mimi(config.mimi).checkpoint_entries(), torch.float32),
    )
    written = 0
    for name, entries, file_dtype in files:
        infos = {entry.key: TensorInfo(file_dtype, entry.shape) for entry in entries}
        write_tensors(folder, name, infos, _maker(entries, file_dtype, seed))
        written += sum(info.nbytes for info in infos.values())
    return written


def _maker(entries: list[WeightEntry], dtype: torch.dtype, seed: int) -> Callable[[str], Iterator[Tensor]]:
    by_key = {entry.key: entry for entry in entries}
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(BLOCK_VALUES, generator=generator)

    def make(key: str) -> Iterator[Tensor]:
        left = math.prod(by_key[key].shape)
        while left:
            count = min(left, PIECE_VALUES)
            left -= count
            start = int(torch.randint(BLOCK_VALUES - count, (1,), generator=generator))
            yield random_values(key, by_key[key].shape, noise[start : start + count]).to(dtype)

    return make


def random_values(key: str, shape: tuple[int, ...], noise: Tensor) -> Tensor:
    """Numbers that keep activations near 1: matrices by the width they sum over."""
    if key.endswith(ONES):
        return torch.ones_like(noise)
    if key.endswith(ZEROS):
        return torch.zeros_like(noise)
    if ".layer_scale_" in key:
        return torch.full_like(noise, LAYER_SCALE)
    summed_over = 1 if "emb" in key else math.prod(shape[1:])
    return noise / math.sqrt(summed_over)


def grown_tokenizer(model: bytes, size: int) -> bytes:
    """A SentencePiece model with words added up to ``size`` pieces.

    Its file is a protocol buffer; a repeated field grows by appending to the bytes.
    """
    have = SentencePieceProcessor(model_proto=model).vocab_size()
    return model + b"".join(_piece(f"▁word{index}") for index in range(have, size))


def _piece(text: str) -> bytes:
    """Field 1 of the model: a message of the text (field 1) and its score (field 2)."""
    name = text.encode()
    inner = bytes([0x0A, len(name)]) + name + b"\x15" + struct.pack("<f", -100.0)
    return bytes([0x0A, len(inner)]) + inner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", type=Path, help="a model's config.json; the 7B if not given")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = ModelConfig.from_json(arguments.config) if arguments.config else ModelConfig.personaplex_7b()
    started = time.perf_counter()
    nbytes = write_random_model(arguments.folder, config, getattr(torch, arguments.dtype), arguments.seed)
    sec = time.perf_counter() - started
    print(json.dumps({"folder": str(arguments.folder), "gb": round(nbytes / 1e9, 3), "sec": round(sec, 1)}))


if __name__ == "__main__":
    main()
