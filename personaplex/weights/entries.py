"""From a checkpoint's tensors to a model's layers: names and shapes first, then one tensor after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from personaplex.config import QuantizationConfig
from personaplex.errors import WeightsError
from personaplex.nn.linear import Linear
from personaplex.nn.packing import PackedWeight, WeightFormat, int4_group_size, int4_shapes
from personaplex.nn.weight_entry import WeightEntry
from personaplex.weights.checkpoint import DTYPE_NAMES, Checkpoint, TensorInfo

FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16)
SCALE_SUFFIXES = {"int8": ".scale", "int4": ".scale_zero"}
LISTED_PROBLEMS = 8


@dataclass(frozen=True)
class Expected:
    """Shape and types that a file's tensor must have."""

    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...] = FLOAT_TYPES


# ---------------------------------------------------------------------------------- stored form


def scale_key(key: str, packed: QuantizationConfig) -> str:
    """The tensor that holds a packed weight's scales."""
    return key + SCALE_SUFFIXES[packed.format]


def stored_form(entry: WeightEntry, packed: QuantizationConfig | None) -> dict[str, TensorInfo | Expected]:
    """The tensors of a file that hold an entry: itself, or its packed bytes and scales, or none."""
    if packed is None:
        return {entry.key: Expected(entry.shape)}
    if not entry.used:
        return {}
    if not entry.linears:
        return {entry.key: Expected(entry.shape)}
    if packed.format == WeightFormat.INT8.value:
        rows = sum(linear.out_features for linear, _ in entry.linears)
        return {
            entry.key: TensorInfo(torch.int8, (rows, entry.linears[0][0].in_features)),
            scale_key(entry.key, packed): TensorInfo(torch.float32, (rows,)),
        }
    (rows, width), (groups, padded_rows, pair) = _int4_shapes(entry.linears[0][0], packed.group_size)
    count = len(entry.linears)
    return {
        entry.key: TensorInfo(torch.uint8, (count * rows, width)),
        scale_key(entry.key, packed): TensorInfo(torch.bfloat16, (count * groups, padded_rows, pair)),
    }


def _int4_shapes(linear: Linear, wanted_group_size: int) -> tuple[tuple[int, int], tuple[int, int, int]]:
    group_size = int4_group_size(linear.in_features, wanted_group_size)
    return int4_shapes(linear.out_features, linear.in_features, group_size)


def read_packed(file: Checkpoint, entry: WeightEntry, index: int, packed: QuantizationConfig) -> PackedWeight:
    """The ``index``-th layer of a packed entry, as views of the file."""
    linear = entry.linears[index][0]
    if packed.format == WeightFormat.INT8.value:
        start = sum(other.out_features for other, _ in entry.linears[:index])
        part = slice(start, start + linear.out_features)
        scale = file.get(scale_key(entry.key, packed))[part]
        return PackedWeight(WeightFormat.INT8, file.get(entry.key)[part], scale)
    group_size = int4_group_size(linear.in_features, packed.group_size)
    (rows, _), (groups, _, _) = int4_shapes(linear.out_features, linear.in_features, group_size)
    data = file.get(entry.key)[index * rows : (index + 1) * rows]
    scale = file.get(scale_key(entry.key, packed))[index * groups : (index + 1) * groups]
    return PackedWeight(WeightFormat.INT4, data, scale, group_size)


def read_plain(file: Checkpoint, entry: WeightEntry, index: int, packed: QuantizationConfig | None) -> Tensor:
    """The ``index``-th layer's weight [out, in] as floats, dequantised if the file is packed."""
    linear, rows = entry.linears[index]
    if packed is None:
        return file.get(entry.key)[rows]
    return read_packed(file, entry, index, packed).plain()[: linear.out_features, : linear.in_features]


# ---------------------------------------------------------------------------------- checking


def check_names_and_shapes(
    entries: Iterable[WeightEntry], tensors: Mapping[str, TensorInfo], packed: QuantizationConfig | None, where: str
) -> None:
    """Raise WeightsError with a list of what is missing, unexpected or of the wrong shape or type."""
    expected = {key: form for entry in entries for key, form in stored_form(entry, packed).items()}
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    wrong = [
        f"{key} is {_describe(tensors[key])} instead of {_describe(form)}"
        for key, form in expected.items()
        if key in tensors and not _fits(tensors[key], form)
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:LISTED_PROBLEMS])}{', …' if len(keys) > LISTED_PROBLEMS else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of the wrong shape or type", wrong))
        if keys
    ]
    if problems:
        raise WeightsError(f"{where} does not fit its config.json: {'; '.join(problems)}")


def _fits(found: TensorInfo, form: TensorInfo | Expected) -> bool:
    return found.shape == form.shape and found.dtype in _dtypes(form)


def _dtypes(form: TensorInfo | Expected) -> tuple[torch.dtype, ...]:
    return form.dtypes if isinstance(form, Expected) else (form.dtype,)


def _describe(form: TensorInfo | Expected) -> str:
    names = "/".join(DTYPE_NAMES[dtype] for dtype in _dtypes(form))
    return f"{names} {list(form.shape)}"


# ---------------------------------------------------------------------------------- loading


@dataclass(frozen=True)
class LoadOptions:
    """Format, device and types of the loaded tensors."""

    format: WeightFormat
    device: str = "cpu"
    group_size: int = 32  # of int4
    parameter_dtype: torch.dtype | None = None  # of tensors that are never quantised; None keeps the stored type


def load_weights(
    file: Checkpoint,
    entries: Iterable[WeightEntry],
    options: LoadOptions,
    packed: QuantizationConfig | None = None,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Fill a model's layers from a checked file.

    Tensors that are used as stored stay memory-mapped; the pages of all others are
    dropped from memory as soon as they are converted. ``advance`` is called with the bytes of each tensor.
    """
    entries = list(entries)
    keys_of = [[key for key in stored_form(entry, packed) if key in file.tensors] for entry in entries]
    for position, (entry, keys) in enumerate(zip(entries, keys_of, strict=True)):
        # The disk fetches the next tensor while this one is converted.
        for upcoming, upcoming_keys in zip(entries[position + 1 : position + 2], keys_of[position + 1 :], strict=False):
            if upcoming.used:
                for key in upcoming_keys:
                    file.prefetch(key)
        if entry.used:
            for index in range(len(entry.linears)):
                _load_linear(file, entry, index, options, packed)
            if entry.parameter is not None:
                _load_parameter(file, entry, options)
            for key in keys:
                _keep_or_release(file, key, entry)
        if advance is not None:
            advance(sum(file.tensors[key].nbytes for key in keys))


def packed_layer(
    file: Checkpoint, entry: WeightEntry, index: int, format: WeightFormat, group_size: int,
    packed: QuantizationConfig | None,
) -> PackedWeight:  # fmt: skip
    """The ``index``-th layer in a packed format: as stored if the file has that format, else packed now."""
    if packed is not None and packed.format == format.value:
        weight = read_packed(file, entry, index, packed)
        wanted = int4_group_size(entry.linears[index][0].in_features, group_size)
        if format is WeightFormat.INT8 or weight.group_size == wanted:
            return weight
    return PackedWeight.quantized(read_plain(file, entry, index, packed), format, group_size)


def _load_linear(
    file: Checkpoint, entry: WeightEntry, index: int, options: LoadOptions, packed: QuantizationConfig | None
) -> None:
    linear = entry.linears[index][0]
    if options.format.quantized:
        weight = packed_layer(file, entry, index, options.format, options.group_size, packed)
        linear.load_packed_(weight, options.device)
    else:
        linear.load_(read_plain(file, entry, index, packed), options.format, options.device)


def _load_parameter(file: Checkpoint, entry: WeightEntry, options: LoadOptions) -> None:
    assert entry.parameter is not None
    module, name = entry.parameter
    value = file.get(entry.key).to(device=options.device, dtype=options.parameter_dtype)
    if name in dict(module.named_parameters(recurse=False)):
        value = nn.Parameter(value, requires_grad=False)
    setattr(module, name, value)


def _keep_or_release(file: Checkpoint, key: str, entry: WeightEntry) -> None:
    """Prefetch the pages of a tensor that is used in place; drop those of a converted one."""
    held = [tensor for linear, _ in entry.linears for tensor in linear.loaded.tensors().values()]
    if entry.parameter is not None:
        held.append(getattr(*entry.parameter))
    if any(file.holds(key, tensor) for tensor in held):
        file.prefetch(key)
    else:
        file.release(key)
