"""A model's folder, opened and checked before a byte of its weights is read."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from personaplex.config import NUM_AGENT_CODEBOOKS, LMConfig, ModelConfig
from personaplex.errors import InputError, WeightsError
from personaplex.models.language_model import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.nn.packing import INT4_GROUP_SIZES, WeightFormat
from personaplex.settings import AUTO
from personaplex.weights.checkpoint import Checkpoint, TensorInfo
from personaplex.weights.entries import LoadOptions, check_names_and_shapes
from personaplex.weights.names import CONFIG_NAME, model_config

log = logging.getLogger(__name__)

DEFAULT_GROUP_SIZE = 32
LARGE_MODEL_BYTES = 2 * 10**9
"""From this size on ``auto`` chooses int4 on the CPU."""

FINGERPRINT_SAMPLES = 4
FINGERPRINT_SAMPLE_BYTES = 256
"""Sampled from every tensor."""


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
        config = model_config(folder)
        lm, mimi = (Checkpoint.open(folder, name) for name in (config.files.lm, config.files.mimi))
        _check_described(folder, config, lm)
        if config.quantization is not None and config.quantization.format == WeightFormat.INT4.value:
            checked_group_size(config.quantization.group_size)
        return cls(folder, replace(config, lm=accept_eight_depth_steps(config.lm, lm)), lm, mimi)

    def check(self, lm: LanguageModel, mimi: Mimi) -> None:
        """Raise WeightsError, with a list, unless every tensor the models expect is there, and no other."""
        names = self.config.files
        packed = self.config.quantization
        check_names_and_shapes(lm.checkpoint_entries(), self.lm.tensors, packed, str(self.folder / names.lm))
        check_names_and_shapes(mimi.checkpoint_entries(), self.mimi.tensors, None, str(self.folder / names.mimi))

    @property
    def stored_format(self) -> WeightFormat:
        """Format of the language model's linear weights in the file."""
        if self.config.quantization is not None:
            return WeightFormat(self.config.quantization.format)
        dtype = self.lm.tensors["text_linear.weight"].dtype
        return WeightFormat.FLOAT32 if dtype is torch.float32 else WeightFormat.BFLOAT16

    def auto_format(self, device: str) -> WeightFormat:
        """The format that ``auto`` chooses: as stored, but a large model in bfloat16 is packed to int4 for the CPU."""
        stored = self.stored_format
        large = self.lm.nbytes >= LARGE_MODEL_BYTES
        return WeightFormat.INT4 if device == "cpu" and large and stored is WeightFormat.BFLOAT16 else stored

    def group_size(self, wanted: int | None) -> int:
        """Group size of int4: the wanted one, else the file's own, else the default."""
        stored = self.config.quantization.group_size if self.config.quantization is not None else 0
        return wanted or stored or DEFAULT_GROUP_SIZE

    def fingerprint(self, options: LoadOptions) -> str:
        """A hash of every tensor's name, shape and a few samples, and of how they are loaded."""
        digest = hashlib.sha256(f"{options.format.value} {options.group_size}\n".encode())
        described = self.config.to_dict()
        described["prompt"].pop("max_voice_sec")  # a state says by itself which voice it has heard
        digest.update(json.dumps(described, sort_keys=True).encode())
        for file in (self.lm, self.mimi):
            for key, tensor in sorted(file.tensors.items()):
                digest.update(f"{key} {tensor.dtype} {tensor.shape}\n".encode())
            for sample in file.samples(FINGERPRINT_SAMPLES, FINGERPRINT_SAMPLE_BYTES):
                digest.update(sample)
        return digest.hexdigest()[:32]


def _check_described(folder: Path, config: ModelConfig, lm: Checkpoint) -> None:
    """A folder without a config is the published 7B; raises WeightsError where its weights are another model's."""
    found = lm.tensors.get("text_linear.weight")
    expected = (config.lm.text_card, config.lm.dim)
    if not (folder / CONFIG_NAME).is_file() and (found is None or found.shape != expected):
        raise WeightsError(
            f"{folder} has no {CONFIG_NAME}, and its weights are not the published 7B's: put the model's {CONFIG_NAME} "
            "beside them"
        )


def accept_eight_depth_steps(config: LMConfig, file: Checkpoint) -> LMConfig:
    """A deliberate exception: older checkpoints carry 8 of the 16 depth steps, which are all that is used."""
    rows = file.tensors.get("depformer.layers.0.self_attn.in_proj_weight", TensorInfo(torch.float32, (0,))).shape[:1]
    later = [f"depformer_in.{step}.weight" in file.tensors for step in range(NUM_AGENT_CODEBOOKS, config.dep_q)]
    if not later or any(later) or rows != (NUM_AGENT_CODEBOOKS * 3 * config.depformer_dim,):
        return config
    log.info("the checkpoint has %d of %d depth steps, which are all that is used", NUM_AGENT_CODEBOOKS, config.dep_q)
    return replace(config, dep_q=NUM_AGENT_CODEBOOKS)


def wanted_format(given: str | WeightFormat) -> WeightFormat | None:
    """None for ``auto``; raises InputError for a format that does not exist."""
    if isinstance(given, WeightFormat):
        return given
    if given == AUTO:
        return None
    try:
        return WeightFormat(given)
    except ValueError:
        allowed = ", ".join([AUTO, *(format.value for format in WeightFormat)])
        raise InputError(f"there is no number format {given!r}; allowed: {allowed}") from None


def checked_group_size(group_size: int | None) -> int | None:
    if group_size not in (None, *INT4_GROUP_SIZES):
        allowed = ", ".join(map(str, sorted(INT4_GROUP_SIZES)))
        raise InputError(f"the group size of int4 is {group_size}; allowed: {allowed}")
    return group_size
