"""A model, by name or folder, checked and loaded in a number format."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from personaplex.config import (
    AUTO_CACHE,
    INT8_CACHE,
    ModelConfig,
    bytes_per_weight,
    cache_frame_bytes,
    checked_kv_cache,
)
from personaplex.errors import InputError, first_line
from personaplex.messages import Progress
from personaplex.models.language_model import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.native.process import prepare_for_cpu
from personaplex.nn.linear import Linear, linear_bytes
from personaplex.nn.packing import WeightFormat
from personaplex.nn.streamed_layers import StreamedLayers, layers_that_fit
from personaplex.nn.weight_entry import WeightEntry
from personaplex.settings import AUTO, Settings, on_zerogpu
from personaplex.weights.entries import LoadOptions, load_weights
from personaplex.weights.folder import ModelFiles, checked_group_size, wanted_format
from personaplex.weights.hub import resolve_model
from personaplex.weights.packed_copy import save_quantized
from personaplex.weights.voice_files import VoicePrompt, read_voice_pt, unpack_voices

__all__ = ["LoadedModel", "VoicePrompt", "load_model", "read_voice_pt", "save_quantized", "usable_device"]

log = logging.getLogger(__name__)


GPU_RESERVE_BYTES = 1_500_000_000
"""Left free when layers are placed: the codec, CUDA itself, graphs and what a prompt needs."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and where it came from."""

    config: ModelConfig
    lm: LanguageModel
    mimi: Mimi
    folder: Path
    format: WeightFormat
    device: str
    fingerprint: str
    """A cheap identity of the weights as loaded, the same wherever the files lie."""
    home: Path = field(repr=False)
    kv_cache: str = AUTO_CACHE  # one of KV_CACHES

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / self.config.files.tokenizer

    @property
    def cache_dtype(self) -> torch.dtype:
        """Type of the temporal transformer's keys and values."""
        return torch.int8 if self.kv_cache == INT8_CACHE else self.lm.activation_dtype

    @property
    def state_format(self) -> str:
        """Format of weights and cache, by name: a saved state goes on in the same one only."""
        return self.format.value + (f" with a cache of {INT8_CACHE}" if self.kv_cache == INT8_CACHE else "")

    @property
    def linear_bytes(self) -> int:
        """Bytes of all linear weights in memory; a frame reads each of them once."""
        return linear_bytes(self.lm)

    def unpack_voice(self, member: str) -> Path:
        """The file of a place in ``voices.tgz``, unpacked once below the user's folder for this program."""
        return unpack_voices(self.folder / self.config.files.voices, self.home / "unpacked") / member


def load_model(
    source: str | Path | ModelFiles,
    *,
    format: str | WeightFormat = AUTO,
    device: str = AUTO,
    group_size: int | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
    layers_on_gpu: int | None = None,
    slots: int = 1,
    context: int | None = None,
    kv_cache: str = AUTO_CACHE,
) -> LoadedModel:
    """Find a model (``nano``, a folder, a hub id; or its files, opened already), check it against its config, load it.

    ``format``: float32, bfloat16, int8, int4 or auto. ``group_size``: of int4, 32, 64 or 128; the file's
    own, else 32, if not given. The codec is always float32. ``layers_on_gpu``: how many temporal layers keep
    their weights on a GPU, the others stream from host memory in every frame; if not given, all that fit
    beside the full caches of ``slots`` conversations of ``context`` frames (the model's own if not given).
    ``kv_cache``: auto, keys and values in the type of the activations, or int8.

    On the CPU it also sets the process's threads and what malloc keeps, see ``prepare_for_cpu``.

    Raises UnknownNameError, DownloadError, ConfigError, WeightsError or InputError.
    """
    wanted, device = wanted_format(format), usable_device(device)
    checked_group_size(group_size)
    checked_kv_cache(kv_cache)
    files = source if isinstance(source, ModelFiles) else ModelFiles.open(resolve_model(str(source), revision).folder)
    lm, mimi = LanguageModel(files.config.lm), Mimi(files.config.mimi)
    files.check(lm, mimi)
    if device == "cpu":
        prepare_for_cpu(files.config.lm.dim)
    options = LoadOptions(wanted or files.auto_format(device), device, files.group_size(group_size))
    advance = _Advance(progress, files.lm.nbytes + files.mimi.nbytes)
    codec_options = LoadOptions(WeightFormat.FLOAT32, device, parameter_dtype=torch.float32)
    load_weights(files.mimi, mimi.checkpoint_entries(), codec_options, None, advance)
    lm.activation_dtype = torch.float32 if options.format is WeightFormat.FLOAT32 else torch.bfloat16
    cache_frames = slots * (context or files.config.lm.context)
    frame_bytes = cache_frame_bytes(lm.config, kv_cache, lm.activation_dtype.itemsize)
    _load_language_model(
        files, lm, options, _layers_kept(lm, options, layers_on_gpu, cache_frames * frame_bytes), advance
    )
    return LoadedModel(
        files.config, lm.eval(), mimi.eval(), files.folder, options.format, device,
        files.fingerprint(options), Settings.from_environment().home, kv_cache,
    )  # fmt: skip


def _load_language_model(
    files: ModelFiles, lm: LanguageModel, options: LoadOptions, kept: int, advance: _Advance
) -> None:
    """Load it with the first ``kept`` temporal layers on the device, and the others, which stream, on the host."""
    streamed = {id(module) for layer in lm.temporal.layers[kept:] for module in layer.modules()}
    on_device: list[WeightEntry] = []
    on_host: list[WeightEntry] = []
    for entry in lm.checkpoint_entries():
        (on_host if any(id(linear) in streamed for linear, _ in entry.linears) else on_device).append(entry)
    load_weights(files.lm, on_device, options, files.config.quantization, advance)
    if on_host:
        load_weights(files.lm, on_host, replace(options, device="cpu"), files.config.quantization, advance)
        lm.temporal.layers = StreamedLayers(lm.temporal.layers, kept, options.device)


def _layers_kept(lm: LanguageModel, options: LoadOptions, wanted: int | None, cache_bytes: int) -> int:
    """Number of temporal layers that keep their weights on the device, beside so large a cache."""
    layers = len(lm.temporal.layers)
    if wanted is not None and not 0 <= wanted <= layers:
        raise InputError(f"layers_on_gpu is {wanted}; 0 to {layers} are allowed for this model")
    if not options.device.startswith("cuda"):
        if wanted not in (None, layers):
            raise InputError(f"layers_on_gpu is {wanted}, but the model runs on the CPU: leave it out")
        return layers
    if wanted is not None:
        return wanted
    free, _ = torch.cuda.mem_get_info(options.device)
    layer_bytes, other_bytes = _weight_bytes(lm, options)
    kept = layers_that_fit(layer_bytes, layers, free - other_bytes - cache_bytes - GPU_RESERVE_BYTES)
    if kept < layers:
        log.warning("the GPU holds %d of %d layers; the others stream from host memory in every frame", kept, layers)
    return kept


def _weight_bytes(lm: LanguageModel, options: LoadOptions) -> tuple[int, int]:
    """Bytes of one temporal layer's matrices, and of everything else."""
    per_weight = bytes_per_weight(options.format.value, options.group_size)

    def weights(module: nn.Module) -> int:
        return sum(m.out_features * m.in_features for m in module.modules() if isinstance(m, Linear))

    layer = weights(lm.temporal.layers[0])
    others = weights(lm) - layer * len(lm.temporal.layers)
    kept_precise = sum(parameter.numel() for parameter in lm.parameters())
    return round(layer * per_weight), round(others * per_weight) + kept_precise * lm.activation_dtype.itemsize


class _Advance:
    """Adds up bytes and reports the sum."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)


def _gpu_computes() -> bool:
    """Whether this PyTorch has code for the GPU: its newer builds have none for old ones."""
    if on_zerogpu():
        return True  # it is lent later, and must not be touched before
    try:
        return bool((torch.zeros(1, device="cuda") + 1).item())
    except RuntimeError as error:
        log.warning("the GPU is left out: %s", first_line(str(error)))
        return False


def usable_device(given: str) -> str:
    """The device, with ``auto`` resolved; raises InputError for one that this machine does not have."""
    if given == AUTO:
        return "cuda" if torch.cuda.is_available() and _gpu_computes() else "cpu"
    kind, _, index = given.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise InputError(f"there is no device {given!r}; allowed: auto, cpu or cuda")
    if kind == "cuda" and not (torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()):
        raise InputError(f"the device {given} was asked for, but PyTorch finds no such GPU here; use cpu or auto")
    return given
