"""Low-rank adapters on linear layers (Hu et al. 2021), kept in the files that `peft` reads and writes.

`peft` itself adapts `torch.nn.Linear` and brings `transformers` along; the engine's linear layers are its
own, and an adapter is one small module.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from personaplex.errors import ConfigError, WeightsError
from personaplex.models.language_model import LanguageModel
from personaplex.nn.linear import Linear
from training.finetune.config import LoraOptions

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


class LoraLinear(nn.Module):
    """A frozen linear layer and what was learned beside it: ``W x + (alpha / rank) · B A x``."""

    def __init__(self, base: Linear, options: LoraOptions) -> None:
        super().__init__()
        self.base, self.scaling = base, options.alpha / options.rank
        device = base.loaded.data.device
        self.lora_A = nn.Linear(base.in_features, options.rank, bias=False, device=device)
        self.lora_B = nn.Linear(options.rank, base.out_features, bias=False, device=device)
        self.dropout = nn.Dropout(options.dropout)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] → [..., out] in the type of ``x``."""
        learned = self.lora_B(self.lora_A(self.dropout(x).to(self.lora_A.weight.dtype)))
        return self.base(x) + (learned * self.scaling).to(x.dtype)

    def merged(self) -> Tensor:
        """[out, in] float32: one weight that does the same."""
        return self.base.loaded.data.float() + self.scaling * self.lora_B.weight @ self.lora_A.weight


def plain_weight(linear: Linear | LoraLinear) -> Tensor:
    """The weight [out, in] a layer works with, its adapter included."""
    return linear.merged() if isinstance(linear, LoraLinear) else linear.loaded.data


def add_adapters_(model: LanguageModel, options: LoraOptions) -> None:
    """Put adapters on the linear layers that ``options`` names; only they, and ``modules_to_save``, get gradients.

    Raises ConfigError for a pattern that no module of the model fits.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    plain = {
        name: module
        for name, module in model.named_modules()
        if not isinstance(module, Linear) and any(True for _ in module.parameters(recurse=False))
    }
    for name in _chosen(options.modules_to_save, plain, "lora.modules_to_save"):
        for key, parameter in list(plain[name].named_parameters(recurse=False)):
            setattr(plain[name], key, nn.Parameter(parameter.detach().float().clone()))
    for name in _chosen(options.targets, linears, "lora.targets"):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LoraLinear(linears[name], options))


def _chosen(patterns: Iterable[str], modules: Mapping[str, nn.Module], key: str) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        fitting = fnmatch.filter(modules, pattern)
        if not fitting:
            near = difflib.get_close_matches(pattern, modules, n=3, cutoff=0.3)
            raise ConfigError(f"{key} names {pattern!r}, which no layer of the model fits; as {', '.join(near)}")
        found.update(dict.fromkeys(fitting))
    return list(found)


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter that gets a gradient, by name."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def save_adapter(model: LanguageModel, options: LoraOptions, base: str, folder: Path) -> None:
    """Write what was trained, as a folder of `peft`'s two files; module names are the engine's."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_PREFIX + name: p.detach().cpu().contiguous() for name, p in trained(model)}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    lora = [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    saved = {name.rpartition(".")[0] for name, _ in trained(model) if ".lora_" not in name}
    config = {
        "peft_type": "LORA", "base_model_name_or_path": base, "r": options.rank, "lora_alpha": options.alpha,
        "lora_dropout": options.dropout, "target_modules": lora, "modules_to_save": sorted(saved) or None,
        "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "task_type": None,
    }  # fmt: skip
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def adapter_options(folder: Path) -> tuple[LoraOptions, str]:
    """Description of a saved adapter, and the base it was made for."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        options = LoraOptions(
            rank=config["r"], alpha=float(config["lora_alpha"]), dropout=float(config["lora_dropout"]),
            targets=tuple(config["target_modules"]), modules_to_save=tuple(config["modules_to_save"] or ()),
        )  # fmt: skip
        return options, config["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder} does not hold an adapter: {error!r}") from error


@torch.no_grad()
def load_adapter_(model: LanguageModel, folder: Path) -> None:
    """Fill adapters that ``add_adapters_`` made; raises WeightsError unless the file holds exactly them."""
    tensors = load_file(folder / WEIGHTS_FILE)
    wanted = {_PREFIX + name: p for name, p in trained(model)}
    wrong = sorted(wanted.keys() ^ tensors.keys()) or [k for k in wanted if wanted[k].shape != tensors[k].shape]
    if wrong:
        raise WeightsError(f"{folder / WEIGHTS_FILE} does not fit the model: {', '.join(wrong[:4])}")
    for name, parameter in wanted.items():
        parameter.copy_(tensors[name])
