"""A model, by name or folder, checked and loaded in a number format; and packed copies of models.

A packed folder (``save_quantized``) has the layout of any model's folder, with ``quantization`` in its
``config.json``. In its language-model file a linear weight is
* int8: ``KEY`` int8 [rows, in] and ``KEY.scale`` float32 [rows];
* int4: ``KEY`` uint8 and ``KEY.scale_zero`` bfloat16 as ``packing.py`` lays them out, the layers of a
  stacked weight one below the other, each padded by itself.
All else is as it was, but for depth steps 8–15: nothing uses them, so they are left out (``lm.dep_q`` is 8).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from personaplex.checkpoint import Checkpoint, TensorInfo, checkpoint_files
from personaplex.config import NUM_AGENT_CODEBOOKS, LMConfig, ModelConfig
from personaplex.errors import InputError, WeightsError
from personaplex.hub import CONFIG_NAME, resolve_model
from personaplex.language_model import LanguageModel
from personaplex.linear import Linear, WeightFormat
from personaplex.mimi import Mimi
from personaplex.packing import INT4_GROUP_SIZES
from personaplex.settings import Settings
from personaplex.voice_files import VoicePrompt, read_voice_pt, unpack_voices
from personaplex.weight_loading import LoadOptions, check_names_and_shapes, load_weights

__all__ = ["LoadedModel", "ModelFiles", "VoicePrompt", "load_model", "read_voice_pt", "save_quantized"]

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Told how many bytes are done, and of how many."""

AUTO = "auto"
DEFAULT_GROUP_SIZE = 32
LARGE_MODEL_BYTES = 2 * 10**9
"""From this size on ``auto`` means int4 on the CPU."""

FINGERPRINT_SAMPLES = 16
FINGERPRINT_SAMPLE_BYTES = 4096


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

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / self.config.files.tokenizer

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of the temporal transformer's keys and values."""
        return self.lm.activation_dtype

    @property
    def linear_bytes(self) -> int:
        """Of all linear weights in memory; a frame reads each of them once."""
        return sum(module.nbytes for module in self.lm.modules() if isinstance(module, Linear))

    def unpack_voice(self, member: str) -> Path:
        """The file of a place in ``voices.tgz``, unpacked once below the user's folder for this program."""
        return unpack_voices(self.folder / self.config.files.voices, self.home / "unpacked") / member


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder, opened: its config and the checked headers of its two checkpoints."""

    folder: Path
    config: ModelConfig
    lm: Checkpoint
    mimi: Checkpoint

    @classmethod
    def open(cls, folder: Path) -> ModelFiles:
        """Raises ConfigError or WeightsError, before a byte of weights is read."""
        path = folder / CONFIG_NAME
        config = ModelConfig.from_json(path) if path.is_file() else ModelConfig.personaplex_7b()
        if not (folder / config.files.tokenizer).is_file():
            raise WeightsError(f"{folder} has no {config.files.tokenizer}; it is not a whole model")
        lm, mimi = (Checkpoint.open(folder, name) for name in (config.files.lm, config.files.mimi))
        return cls(folder, replace(config, lm=accept_eight_depth_steps(config.lm, lm)), lm, mimi)

    @property
    def stored_format(self) -> WeightFormat:
        """How the language model's linear weights lie in the file."""
        if self.config.quantization is not None:
            return WeightFormat(self.config.quantization.format)
        dtype = self.lm.tensors["text_linear.weight"].dtype
        return WeightFormat.FLOAT32 if dtype is torch.float32 else WeightFormat.BFLOAT16

    def auto_format(self, device: str) -> WeightFormat:
        """What ``auto`` means: as stored, but a large model in bfloat16 is packed for the CPU."""
        stored = self.stored_format
        large = sum(tensor.nbytes for tensor in self.lm.tensors.values()) >= LARGE_MODEL_BYTES
        return WeightFormat.INT4 if device == "cpu" and large and stored is WeightFormat.BFLOAT16 else stored

    def fingerprint(self, options: LoadOptions) -> str:
        """Of names, sizes, headers and samples of the files, and of how they are loaded."""
        digest = hashlib.sha256(f"{options.format.value} {options.group_size}\n".encode())
        digest.update(json.dumps(self.config.to_dict(), sort_keys=True).encode())
        for name in (self.config.files.lm, self.config.files.mimi):
            for path in checkpoint_files(self.folder, name):
                _add_samples(digest, path)
        return digest.hexdigest()[:32]


def accept_eight_depth_steps(config: LMConfig, file: Checkpoint) -> LMConfig:
    """A deliberate exception: older checkpoints carry 8 of the 16 depth steps, which are all that is used."""
    rows = file.tensors.get("depformer.layers.0.self_attn.in_proj_weight", TensorInfo(torch.float32, (0,))).shape[0]
    later = [f"depformer_in.{step}.weight" in file.tensors for step in range(NUM_AGENT_CODEBOOKS, config.dep_q)]
    if not later or any(later) or rows != NUM_AGENT_CODEBOOKS * 3 * config.depformer_dim:
        return config
    log.info("the checkpoint has %d of %d depth steps, which are all that is used", NUM_AGENT_CODEBOOKS, config.dep_q)
    return replace(config, dep_q=NUM_AGENT_CODEBOOKS)


def _add_samples(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name} {size}\n".encode())
    with path.open("rb") as file:
        for index in range(FINGERPRINT_SAMPLES):
            file.seek(size * index // FINGERPRINT_SAMPLES)
            digest.update(file.read(FINGERPRINT_SAMPLE_BYTES))


# ---------------------------------------------------------------------------------- loading


def load_model(
    source: str | Path,
    *,
    format: str | WeightFormat = AUTO,
    device: str = AUTO,
    group_size: int | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Find a model (``nano``, a folder, a hub id), check it against its config and load it.

    ``format``: float32, bfloat16, int8, int4 or auto. ``group_size``: of int4, 32, 64 or 128; the file's
    own, else 32, if not given. The codec is always float32.

    Raises UnknownNameError, DownloadError, ConfigError, WeightsError or InputError.
    """
    wanted, device = _wanted_format(format), _usable_device(device)
    _check_group_size(group_size)
    files = ModelFiles.open(resolve_model(str(source), revision).folder)
    packed = files.config.quantization
    stored_group_size = packed.group_size if packed is not None else 0
    options = LoadOptions(
        wanted or files.auto_format(device), device, group_size or stored_group_size or DEFAULT_GROUP_SIZE
    )
    lm, mimi = LanguageModel(files.config.lm), Mimi(files.config.mimi)
    check_names_and_shapes(lm.checkpoint_entries(), files.lm.tensors, packed, str(files.folder / files.config.files.lm))
    check_names_and_shapes(
        mimi.checkpoint_entries(), files.mimi.tensors, None, str(files.folder / files.config.files.mimi)
    )
    advance = _Advance(progress, sum(t.nbytes for file in (files.lm, files.mimi) for t in file.tensors.values()))
    codec_options = LoadOptions(WeightFormat.FLOAT32, device, parameter_dtype=torch.float32)
    load_weights(files.mimi, mimi.checkpoint_entries(), codec_options, None, advance)
    load_weights(files.lm, lm.checkpoint_entries(), options, packed, advance)
    lm.activation_dtype = torch.float32 if options.format is WeightFormat.FLOAT32 else torch.bfloat16
    return LoadedModel(
        files.config, lm.eval(), mimi.eval(), files.folder, options.format, device,
        files.fingerprint(options), Settings.from_environment().home,
    )  # fmt: skip


class _Advance:
    """Adds up bytes and tells the sum."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)


def _wanted_format(given: str | WeightFormat) -> WeightFormat | None:
    if given == AUTO or isinstance(given, WeightFormat):
        return None if given == AUTO else given
    try:
        return WeightFormat(given)
    except ValueError:
        allowed = ", ".join([AUTO, *(format.value for format in WeightFormat)])
        raise InputError(f"there is no number format {given!r}; allowed: {allowed}") from None


def _check_group_size(group_size: int | None) -> None:
    if group_size not in (None, *INT4_GROUP_SIZES):
        allowed = ", ".join(map(str, sorted(INT4_GROUP_SIZES)))
        raise InputError(f"the group size of int4 is {group_size}; allowed: {allowed}")


def _usable_device(given: str) -> str:
    if given == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = given.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise InputError(f"there is no device {given!r}; allowed: auto, cpu or cuda")
    if kind == "cuda" and not (torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()):
        raise InputError(f"the device {given} was asked for, but PyTorch finds no such GPU here; use cpu or auto")
    return given


def save_quantized(*a, **k):
    raise NotImplementedError
