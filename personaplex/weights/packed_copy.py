"""Packed copies of models: a folder whose linear weights are int8 or int4 already, opened by memory map.

It has the layout of any model's folder, with ``quantization`` in its ``config.json``. In its
language-model file a linear weight is
* int8: ``KEY`` int8 [rows, in] and ``KEY.scale`` float32 [rows];
* int4: ``KEY`` uint8 and ``KEY.scale_zero`` bfloat16 as ``packing.py`` lays them out, the layers of a
  stacked weight one below the other, each padded by itself.
Everything else is copied, but for depth steps 8–15, which nothing uses (``lm.dep_q`` is 8).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from personaplex.config import NUM_AGENT_CODEBOOKS, ModelConfig, QuantizationConfig
from personaplex.errors import InputError, OutputError
from personaplex.files import check_folder, size_text
from personaplex.messages import Progress
from personaplex.models.language_model import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.nn.packing import WeightFormat
from personaplex.nn.weight_entry import WeightEntry
from personaplex.weights.checkpoint import TensorInfo, checkpoint_files, write_tensors
from personaplex.weights.entries import packed_layer, scale_key, stored_form
from personaplex.weights.folder import ModelFiles, checked_group_size, wanted_format
from personaplex.weights.hub import resolve_model
from personaplex.weights.names import CONFIG_NAME

CARRIED_ALONG = ("LICENSE*", "NOTICE*", "README.md")
"""Copied if they are there, beside what the model needs."""


def save_quantized(
    source: str | Path,
    folder: str | Path,
    format: str | WeightFormat,
    *,
    group_size: int | None = None,
    revision: str | None = None,
    max_shard_bytes: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a packed copy of a model, one tensor at a time; the folder appears when it is whole.

    ``max_shard_bytes`` bounds every checkpoint file. Raises what ``load_model`` raises, and OutputError
    for a folder that cannot be made.
    """
    wanted = wanted_format(format)
    if wanted is None or not wanted.quantized:
        raise InputError(f"a model is packed as int8 or int4; {format} was asked for")
    checked_group_size(group_size)
    folder = Path(folder).resolve()
    _check_new(folder)
    files = ModelFiles.open(resolve_model(str(source), revision).folder)
    lm = LanguageModel(files.config.lm)
    files.check(lm, Mimi(files.config.mimi))
    copy = _PackedCopy(files, lm, wanted, files.group_size(group_size), max_shard_bytes, progress)
    with _new_folder(folder, copy.nbytes) as place:
        copy.write(place)
    return folder


@dataclass(frozen=True)
class _PackedCopy:
    """Contents of the new folder."""

    files: ModelFiles
    lm: LanguageModel
    format: WeightFormat
    group_size: int
    max_shard_bytes: int | None
    progress: Progress | None

    @property
    def quantization(self) -> QuantizationConfig:
        return QuantizationConfig(self.format.value, self.group_size if self.format is WeightFormat.INT4 else 0)

    @property
    def config(self) -> ModelConfig:
        lm = replace(self.files.config.lm, dep_q=NUM_AGENT_CODEBOOKS)
        return replace(self.files.config, lm=lm, quantization=self.quantization)

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Every tensor of the language model's new file, in the order of its entries."""
        found: dict[str, TensorInfo] = {}
        for entry in self.lm.checkpoint_entries():
            for key, form in stored_form(entry, self.quantization).items():
                found[key] = form if isinstance(form, TensorInfo) else self.files.lm.tensors[key]
        return found

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.infos.values()) + self.files.mimi.nbytes

    def write(self, place: Path) -> None:
        names = self.config.files
        text = json.dumps(self.config.to_dict(), indent=1) + "\n"
        (place / CONFIG_NAME).write_text(text, encoding="utf-8")
        self._copy_others(place)
        self._write_codec(place)
        write_tensors(place, names.lm, self.infos, self._pieces(), self.max_shard_bytes)

    def _copy_others(self, place: Path) -> None:
        source, names = self.files.folder, self.config.files
        patterns = (names.tokenizer, names.voices, *CARRIED_ALONG)
        for path in (path for pattern in patterns for path in sorted(source.glob(pattern))):
            shutil.copyfile(path, place / path.name)
        if (source / "voices").is_dir():
            shutil.copytree(source / "voices", place / "voices", copy_function=shutil.copyfile)

    def _write_codec(self, place: Path) -> None:
        name, codec = self.config.files.mimi, self.files.mimi
        if self.max_shard_bytes is None:
            for path in checkpoint_files(self.files.folder, name):
                shutil.copyfile(path, place / path.name)
        else:
            write_tensors(place, name, dict(codec.tensors), lambda key: [codec.get(key)], self.max_shard_bytes)

    def _pieces(self) -> Callable[[str], Iterable[Tensor]]:
        """Gives the parts of any tensor of the new file; a weight's scales are kept until they are asked for."""
        entries = {entry.key: entry for entry in self.lm.checkpoint_entries()}
        scales: dict[str, Tensor] = {}
        done = 0

        def pieces(key: str) -> Iterator[Tensor]:
            nonlocal done
            if key in scales:
                yield scales.pop(key)
                return
            entry = entries[key]
            if entry.linears:
                parts = []
                for index in range(len(entry.linears)):
                    data, scale = self._packed_parts(entry, index)
                    parts.append(scale)
                    yield data
                scales[scale_key(key, self.quantization)] = torch.cat(parts)
            else:
                yield self.files.lm.get(key)
            self.files.lm.release(key)
            done += self.files.lm.tensors[key].nbytes
            if self.progress is not None:
                self.progress(done, self.files.lm.nbytes)

        return pieces

    def _packed_parts(self, entry: WeightEntry, index: int) -> tuple[Tensor, Tensor]:
        stored = self.files.config.quantization
        packed = packed_layer(self.files.lm, entry, index, self.format, self.group_size, stored)
        return packed.data, packed.scale


# ---------------------------------------------------------------------------------- folders


def _check_new(folder: Path) -> None:
    """Raise OutputError, before the work, for a place that cannot become the new folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is there already; give the path of a new folder")
    if os.path.ismount(folder):
        raise OutputError(f"{folder} is a disk's mount point, which cannot be replaced; give a new folder below it")
    if not folder.parent.is_dir():
        raise OutputError(f"{folder} cannot be made: there is no folder {folder.parent}")
    check_folder(folder.parent)


@contextmanager
def _new_folder(folder: Path, nbytes: int) -> Iterator[Path]:
    """A folder beside, renamed to ``folder`` when all went well and deleted when not."""
    free = shutil.disk_usage(folder.parent).free
    if nbytes > free:
        raise OutputError(f"{folder} needs {size_text(nbytes)}, its disk has {size_text(free)} free")
    place = folder.with_name(f".personaplex-{secrets.token_hex(6)}")
    try:
        try:
            place.mkdir()
            yield place
            if folder.is_dir():
                folder.rmdir()
            place.rename(folder)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
