"""A trained model as a folder in the published layout: `personaplex reply --model FOLDER` runs it.

    python -m training.finetune.checkpoints --adapter RUN/adapter --out FOLDER

joins an adapter and its base to such a folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from personaplex.errors import OutputError, PersonaPlexError
from personaplex.models.language_model import LanguageModel
from personaplex.nn.packing import WeightFormat
from personaplex.nn.weight_entry import WeightEntry
from personaplex.weights.checkpoint import TensorInfo, checkpoint_files, write_tensors
from personaplex.weights.folder import ModelFiles
from personaplex.weights.load import load_model
from personaplex.weights.names import CONFIG_NAME
from training.finetune.lora import adapter_options, add_adapters_, load_adapter_, plain_weight

log = logging.getLogger(__name__)

CARRIED_ALONG = ("LICENSE*", "NOTICE*", "voices.tgz")


def save_model(model: LanguageModel, base: Path, folder: Path) -> None:
    """Write a model, adapters merged, beside the codec and tokenizer of the folder it was loaded from.

    Matrices are written as floats even where the base has them packed (`personaplex quantize` packs them
    again): bfloat16 if the base has that, else float32. Raises OutputError where there is something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} is there already; give the path of a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    files = ModelFiles.open(base)
    writer = _Writer(model, files)
    config = replace(files.config, quantization=None)
    (folder / CONFIG_NAME).write_text(json.dumps(config.to_dict(), indent=1) + "\n", encoding="utf-8")
    for pattern in (files.config.files.tokenizer, *CARRIED_ALONG):
        for path in base.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    for path in checkpoint_files(base, files.config.files.mimi):
        shutil.copyfile(path, folder / path.name)
    write_tensors(folder, files.config.files.lm, writer.infos, writer.pieces)


class _Writer:
    """The tensors of the published file, made one at a time."""

    def __init__(self, model: LanguageModel, files: ModelFiles) -> None:
        self._files = files
        self._entries = {entry.key: entry for entry in model.checkpoint_entries()}
        bfloat16 = files.stored_format is WeightFormat.BFLOAT16
        self._matrices = torch.bfloat16 if bfloat16 else torch.float32
        self.infos = {key: TensorInfo(self._dtype(entry), entry.shape) for key, entry in self._entries.items()}

    def _dtype(self, entry: WeightEntry) -> torch.dtype:
        return self._matrices if entry.linears else self._files.lm.tensors[entry.key].dtype

    @torch.no_grad()
    def pieces(self, key: str) -> Iterator[Tensor]:
        entry, dtype = self._entries[key], self.infos[key].dtype
        if not entry.used:
            yield self._files.lm.get(key).to(dtype)
        elif entry.parameter is not None:
            yield getattr(*entry.parameter).detach().to("cpu", dtype)
        else:
            rows = entry.shape[0]
            for linear, place in entry.linears:
                yield plain_weight(linear).detach().to("cpu", dtype)
                rows -= place.stop - place.start
            if rows:  # of depth steps that nothing runs
                yield self._files.lm.get(key)[entry.shape[0] - rows :].to(dtype)


def merge(adapter: Path, out: Path, base: str | None = None) -> None:
    """Join a saved adapter and its base."""
    options, named = adapter_options(adapter)
    loaded = load_model(base or named, format=WeightFormat.FLOAT32, device="cpu")
    add_adapters_(loaded.lm, options)
    load_adapter_(loaded.lm, adapter)
    save_model(loaded.lm, loaded.folder, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--base", help="default: the model named in the adapter")
    options = parser.parse_args()
    try:
        merge(options.adapter, options.out, options.base)
    except PersonaPlexError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
