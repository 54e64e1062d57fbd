"""The models that are measured: nano, a folder, or the 7B's shapes with random weights made in memory.

Random quantised weights are random bytes with scales that give every matrix the spread of its float
twin, so nothing is quantised, and the 7B is there in seconds without a file of 17 GB.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.measuring import check_room
from benchmarks.random_weights import TOKENIZER, grown_tokenizer, random_values
from personaplex.config import AUTO_CACHE, KV_CACHES, ModelConfig
from personaplex.errors import InputError
from personaplex.machine.inspect import Machine
from personaplex.models.language_model import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.nn.linear import Linear
from personaplex.nn.packing import (
    INT4_GROUP_SIZES,
    INT8_MAX,
    PackedWeight,
    WeightFormat,
    int4_group_size,
    int4_shapes,
)
from personaplex.nn.weight_entry import WeightEntry
from personaplex.weights.folder import ModelFiles, wanted_format
from personaplex.weights.hub import resolve_model
from personaplex.weights.load import LoadedModel, load_model

RANDOM_7B = "7b-random"
BLOCK_VALUES = 1 << 22
INT8_DEVIATION = (2 * INT8_MAX + 1) / math.sqrt(12)
INT4_DEVIATION = 16 / math.sqrt(12)
"""Standard deviations of numbers that take every value of the format alike."""


@dataclass(frozen=True)
class Measured:
    """A loaded model, and the machine it fits."""

    name: str
    model: LoadedModel
    machine: Machine

    @property
    def described(self) -> dict[str, object]:
        """The model's fields of the JSON line."""
        group_size = self.model.lm.temporal.text_linear.loaded.group_size
        found = {"model": self.name, "dtype": self.model.format.value, "group_size": group_size or None}
        return {**found, "kv_cache": self.model.kv_cache}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--model --device --dtype --group-size --kv-cache --threads --context``, the same for all benchmarks."""
    parser.add_argument("--model", default="nano", help=f"{RANDOM_7B}, nano, a folder, or a config.json: random too")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, int8 or int4")
    parser.add_argument("--group-size", type=int, choices=INT4_GROUP_SIZES, help="of int4; the file's own, or 32")
    parser.add_argument("--kv-cache", default=AUTO_CACHE, choices=KV_CACHES, help="type of keys and values")
    parser.add_argument("--threads", type=int, help="of the processor; PyTorch's choice if not given")
    parser.add_argument("--context", type=int, help="length of the cache in frames; the model's own if not given")


@contextmanager
def open_measured(given: argparse.Namespace, slots: int, context: int | None) -> Iterator[Measured]:
    """The model that the arguments name; raises InputError, before the work, when it does not fit."""
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device is {given.device}, but PyTorch finds no GPU here; use cpu")
    format = wanted_format(given.dtype)
    config, files = described(given.model)
    if format is None:
        large = WeightFormat.INT4 if given.device == "cpu" else WeightFormat.BFLOAT16
        format = files.auto_format(given.device) if files else large
    context = config.lm.context if context is None else context
    machine = check_room(config, format.value, given.device, slots, context, given.kv_cache)
    with TemporaryDirectory() as folder:
        if files is None:
            model = random_model(config, format, given.device, Path(folder), group_size=given.group_size or 32)
            model = replace(model, kv_cache=given.kv_cache)
        else:
            model = load_model(
                files.folder, format=format, device=given.device, group_size=given.group_size, kv_cache=given.kv_cache
            )
        if given.threads is not None:  # loading a small model sets one thread
            torch.set_num_threads(given.threads)
        yield Measured(given.model, model, machine)


def described(model: str) -> tuple[ModelConfig, ModelFiles | None]:
    """The config of ``--model``, and its files unless the weights are random."""
    if model == RANDOM_7B:
        return ModelConfig.personaplex_7b(), None
    if model.endswith(".json"):
        return ModelConfig.from_json(model), None
    files = ModelFiles.open(resolve_model(model).folder)
    return files.config, files


def random_model(
    config: ModelConfig, format: WeightFormat, device: str, folder: Path, *, group_size: int = 32, seed: int = 0
) -> LoadedModel:
    """As ``load_model`` would give it; ``folder`` is where its tokenizer is written."""
    maker = _Maker(seed)
    lm, mimi = LanguageModel(config.lm), Mimi(config.mimi)
    for entry in mimi.checkpoint_entries():
        maker.fill(entry, torch.float32, WeightFormat.FLOAT32, device, group_size)
    lm.activation_dtype = torch.float32 if format is WeightFormat.FLOAT32 else torch.bfloat16
    for entry in lm.checkpoint_entries():
        if entry.used:
            maker.fill(entry, lm.activation_dtype, format, device, group_size)
    (folder / config.files.tokenizer).write_bytes(grown_tokenizer(TOKENIZER.read_bytes(), config.lm.text_card))
    return LoadedModel(
        config, lm.eval(), mimi.eval(), folder, format, device, f"random {format.value} {group_size} {seed}", folder
    )


class _Maker:
    """Fills tensors from one block of noise, again and again."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self._normal = torch.randn(BLOCK_VALUES, generator=generator)
        self._bytes = torch.randint(0, 256, (BLOCK_VALUES,), generator=generator, dtype=torch.uint8)

    def fill(self, entry: WeightEntry, dtype: torch.dtype, format: WeightFormat, device: str, group_size: int) -> None:
        """One tensor of a checkpoint, to where it belongs."""
        for linear, _ in entry.linears:
            if format.quantized:
                linear.load_packed_(self._packed(linear, format, group_size), device)
            else:
                shape = (linear.out_features, linear.in_features)
                linear.load_(self._floats(entry.key, shape, format.dtype), format, device)
        if entry.parameter is not None:
            module, name = entry.parameter
            value = self._floats(entry.key, entry.shape, dtype).to(device)
            if name in dict(module.named_parameters(recurse=False)):
                value = torch.nn.Parameter(value, requires_grad=False)
            setattr(module, name, value)

    def _floats(self, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        block = self._normal[: math.prod(shape)]
        return _repeated(random_values(key, shape, block).to(dtype), shape)

    def _packed(self, linear: Linear, format: WeightFormat, group_size: int) -> PackedWeight:
        deviation = 1 / math.sqrt(linear.in_features)
        if format is WeightFormat.INT8:
            data = _repeated(self._bytes.view(torch.int8), (linear.out_features, linear.in_features))
            scale = torch.full((linear.out_features,), deviation / INT8_DEVIATION)
            return PackedWeight(format, data, scale)
        group_size = int4_group_size(linear.in_features, group_size)
        data_shape, scale_shape = int4_shapes(linear.out_features, linear.in_features, group_size)
        scale = torch.empty(scale_shape, dtype=torch.bfloat16)
        scale[..., 0] = deviation / INT4_DEVIATION
        scale[..., 1] = scale[..., 0] / 2  # makes 0..15 less 8 symmetric
        return PackedWeight(format, _repeated(self._bytes, data_shape), scale, group_size)


def _repeated(block: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The block as often as it takes to fill ``shape``."""
    count = math.prod(shape)
    whole = torch.empty(count, dtype=block.dtype)
    for start in range(0, count, len(block)):
        stop = min(start + len(block), count)
        whole[start:stop] = block[: stop - start]
    return whole.view(shape)
