"""Names of models: ``nano``, a folder, or a hub id. Checked without PyTorch and without the network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from personaplex.config import NANO, PUBLISHED, ModelConfig
from personaplex.errors import UnknownNameError, WeightsError
from personaplex.files import PACKAGE_FOLDER
from personaplex.strict import nearest_names
from personaplex.text.tokenizer import TextTokenizer

CONFIG_NAME = "config.json"
KNOWN_MODELS = (NANO, PUBLISHED, "kyutai/personaplex-rl-seamless")

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")


@dataclass(frozen=True)
class HubModel:
    """A model on the hub."""

    repo: str
    revision: str | None = None


def nano_folder() -> Path:
    """The folder of the small model that ships with the program."""
    return PACKAGE_FOLDER / NANO


def named_model(name: str, revision: str | None = None) -> Path | HubModel:
    """Resolve a name: a model's folder, or a hub id, ``ID`` or ``ID@REVISION``, which may or may not exist.

    Raises UnknownNameError with the nearest names, or WeightsError for a folder that holds no model.
    """
    if name == NANO:
        if revision is not None:
            raise UnknownNameError(f"nano comes with the program and has no revision {revision}; leave it out")
        return _model_folder(nano_folder())
    if name and Path(name).is_dir():
        if revision is not None:
            raise UnknownNameError(f"{name} is a folder; a revision can only be given with a hub id")
        return _model_folder(Path(name))
    repo, _, pinned = name.partition("@")
    if pinned and revision and pinned != revision:
        raise UnknownNameError(f"{name} and the revision {revision} contradict one another; give one")
    revision = revision or pinned or None
    if not _HUB_ID.fullmatch(repo) or ".." in name or name.endswith("@"):
        raise UnknownNameError(
            f"there is no model {name!r}: nano, a folder or a hub id (OWNER/NAME, OWNER/NAME@REVISION) is needed"
            f"{nearest_names(repo, KNOWN_MODELS)}"
        )
    if revision is not None and (".." in revision or not _REVISION.fullmatch(revision)):
        raise UnknownNameError(f"{revision!r} cannot be a revision: a commit, a tag or a branch is needed")
    return HubModel(repo, revision)


def model_config(folder: Path) -> ModelConfig:
    """The checked config of a model's folder: its ``config.json``, or the 7B's where there is none.

    Raises ConfigError, or WeightsError where the tokenizer is missing, damaged or another model's.
    """
    path = folder / CONFIG_NAME
    config = ModelConfig.from_json(path) if path.is_file() else ModelConfig.personaplex_7b()
    config.check_prompt()
    tokenizer = folder / config.files.tokenizer
    if not tokenizer.is_file():
        without = "" if path.is_file() else f" and no {CONFIG_NAME}"
        raise WeightsError(f"{folder} has no {config.files.tokenizer}{without}; it is not a whole model")
    TextTokenizer(tokenizer, config.lm.text_card)
    return config


def _model_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise WeightsError(f"{folder} is missing from this installation: install the program again")
    if not any(folder.glob("*.safetensors")):
        raise WeightsError(f"{folder} holds no model: {CONFIG_NAME} and .safetensors files are needed")
    return folder
