"""A run's configuration: one strict TOML file."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from personaplex.errors import ConfigError
from personaplex.strict import strict_dataclass

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LORA, FULL = "lora", "full"


@dataclass(frozen=True)
class ModelOptions:
    base: str = "nano"  # a name, a folder or a hub id, as `personaplex --model` takes it
    device: str = "auto"  # cpu, cuda or auto
    bfloat16: bool = False  # products in bfloat16, and so frozen weights; what is trained stays float32
    gradient_checkpointing: bool = False  # keeps one layer's activations at a time, for a third more work


@dataclass(frozen=True)
class DataOptions:
    train: str  # manifests: a line of JSON for each recording
    validation: str
    max_sec: float = 100.0  # of conversation in one sequence; longer recordings are cut into several
    hidden_agent_share: float = 0.0  # up to this share of the agent's codes is hidden from the input

    def __post_init__(self) -> None:
        _check(self.max_sec >= 1, f"data.max_sec is {self.max_sec}; at least 1 s is needed")
        _check(0 <= self.hidden_agent_share <= 1, "data.hidden_agent_share must be between 0 and 1")


@dataclass(frozen=True)
class LossOptions:
    text: float = 1.0  # of the whole text loss, beside the sound's
    padding: float = 0.3  # of a frame without text, beside one with
    semantic: float = 1.0  # of the agent's first codebook
    acoustic: float = 0.1  # of each of its others; 0.02 to 0.1 are published

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _check(value >= 0, f"loss.{name} is {value}; weights are 0 or more")


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters (Hu et al. 2021). Names are the modules' own, `*` stands for anything."""

    rank: int = 16
    alpha: float = 32.0  # the adapters' product is multiplied by alpha / rank
    dropout: float = 0.0
    targets: tuple[str, ...] = ("*",)  # linear layers that get an adapter
    modules_to_save: tuple[str, ...] = ()  # embeddings or norms that are trained whole beside them

    def __post_init__(self) -> None:
        _check(self.rank >= 1 and self.alpha > 0, "lora.rank and lora.alpha must be above 0")
        _check(0 <= self.dropout < 1, f"lora.dropout is {self.dropout}; allowed: 0 up to 1")


@dataclass(frozen=True)
class TrainOptions:
    mode: str = LORA
    steps: int = 1000
    batch: int = 4  # sequences at a time
    accumulate: int = 1  # such batches for one step
    learning_rate: float = 1e-4
    warmup_share: float = 0.05  # of the steps, to the full rate
    last_rate: float = 0.05  # share of the rate left at the end of the cosine
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    log_every: int = 10
    save_every: int = 200

    def __post_init__(self) -> None:
        _check(self.mode in (LORA, FULL), f"train.mode is {self.mode!r}; allowed: {LORA}, {FULL}")
        for name in ("steps", "batch", "accumulate", "log_every", "save_every"):
            _check(getattr(self, name) >= 1, f"train.{name} must be at least 1")
        _check(self.learning_rate > 0, "train.learning_rate must be above 0")


@dataclass(frozen=True)
class ValidationOptions:
    loss_every: int = 100  # steps
    talk_every: int = 500  # steps between free running; 0: only before the first and after the last
    conversations: int = 16  # held when running freely
    slots: int = 8  # of them at once
    hear: bool = False  # also have an ASR listen to what was said

    def __post_init__(self) -> None:
        _check(self.loss_every >= 1, "validation.loss_every must be at least 1")
        _check(self.talk_every >= 0 and self.conversations >= 0, "validation's counts are 0 or more")
        _check(self.slots >= 1, "validation.slots must be at least 1")


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything a run depends on. Paths are relative to where the command is run."""

    out: str
    data: DataOptions
    seed: int = 0
    model: ModelOptions = field(default_factory=ModelOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)


def read_config(path: str | Path) -> FinetuneConfig:
    """Raises ConfigError for a file that is not TOML, an unknown key or a value that is not allowed."""
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
    for key, section in (("out", data), ("train", data.get("data", {})), ("validation", data.get("data", {}))):
        if not isinstance(section, dict) or key not in section:
            raise ConfigError(f"{path} lacks {'' if section is data else 'data.'}{key}, which every run needs")
    return strict_dataclass(FinetuneConfig, data)


def _check(right: bool, message: str) -> None:
    if not right:
        raise ConfigError(message)
