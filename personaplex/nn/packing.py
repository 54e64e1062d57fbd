"""Quantisation of weights to int8 and int4, and the layout of the packed weights.

int8, symmetric per row: ``w ≈ q · scale[row]``, q in −127..127. The scale is exact in bfloat16, the type
that the CPU kernel takes; it is rounded up, so that nothing clips.

int4, asymmetric per group of 32, 64 or 128 neighbours in a row: ``w ≈ (q − 8) · scale + zero``,
q in 0..15, scale and zero bfloat16, stored as ``[groups, out, 2]``. Nibbles are stored in blocks of
64 rows: byte ``[block, column, j]`` holds row j of the block in its low half and row j + 32 in its
high half; a last block of fewer rows holds row 2j low and 2j + 1 high. PyTorch's AVX-512 kernel and our
compiled code read this layout, so a saved model runs from its memory map; for other kernels it is repacked
once. Rows are padded to a multiple of 16 and columns to whole groups with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

INT4_GROUP_SIZES = (128, 64, 32)
INT4_ROW_MULTIPLE = 16
INT8_MAX = 127
INT4_STEPS = 15
INT4_ZERO = 8
QUANTIZED_BLOCK_ROWS = 256
"""Rows quantised at once, a multiple of every packing block."""

TINY_SCALE = 2.0**-100
"""Scale of a row or group of equal weights: small enough to add nothing, large enough to divide by."""


class WeightFormat(Enum):
    """Number format of a linear weight in memory."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def quantized(self) -> bool:
        return self in (WeightFormat.INT8, WeightFormat.INT4)

    @property
    def dtype(self) -> torch.dtype:
        """Type of plain (unquantised) linear weights in this format."""
        return torch.float32 if self is WeightFormat.FLOAT32 else torch.bfloat16


@dataclass(frozen=True)
class PackedWeight:
    """One quantised weight as files hold it (on the CPU, perhaps memory-mapped).

    int8: ``data`` [out, in] int8, ``scale`` [out] float32.
    int4: ``data`` [padded out, padded in / 2] uint8, ``scale`` [groups, padded out, 2] bfloat16.
    """

    format: WeightFormat
    data: Tensor
    scale: Tensor
    group_size: int = 0

    @classmethod
    def quantized(cls, weight: Tensor, format: WeightFormat, group_size: int) -> PackedWeight:
        """Quantise a plain weight [out, in]; ``group_size`` is the largest that int4 may use."""
        if format is WeightFormat.INT8:
            return cls(format, *quantize_int8(weight))
        assert format is WeightFormat.INT4, format
        group_size = int4_group_size(weight.shape[1], group_size)
        return cls(format, *quantize_int4(weight, group_size), group_size)

    def plain(self) -> Tensor:
        """The weight as float32 [out, in]; of int4 with its padding."""
        if self.format is WeightFormat.INT8:
            return dequantize_int8(self.data, self.scale)
        return dequantize_int4(self.data, self.scale)


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def pad_to(tensor: Tensor, *sizes: int) -> Tensor:
    """Zeros at the end of each axis up to ``sizes``; the tensor itself where nothing is missing."""
    missing = [size - have for size, have in zip(sizes, tensor.shape, strict=True)]
    if not any(missing):
        return tensor
    return F.pad(tensor, [pad for size in reversed(missing) for pad in (0, size)])


def _bfloat16_at_least(scale: Tensor) -> Tensor:
    """The smallest bfloat16 not below the float32 scale, as float32."""
    bits = scale.contiguous().view(torch.int32)
    return ((bits + 0xFFFF) & ~0xFFFF).view(torch.float32)


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [out, in], any float type → q [out, in] int8, scale [out] float32 (exact in bfloat16).

    Works in blocks of rows, so that little of a memory-mapped weight is in memory at once.
    """
    q = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(weight.shape[0], device=weight.device)
    for start in range(0, weight.shape[0], QUANTIZED_BLOCK_ROWS):
        rows = slice(start, start + QUANTIZED_BLOCK_ROWS)
        block = weight[rows].float()
        scale[rows] = _bfloat16_at_least(block.abs().amax(dim=1) / INT8_MAX).clamp(min=TINY_SCALE)
        q[rows] = (block / scale[rows, None]).round_().clamp_(-INT8_MAX, INT8_MAX)
    return q, scale


def dequantize_int8(q: Tensor, scale: Tensor) -> Tensor:
    """q [out, in] int8, scale [out] → float32 [out, in]."""
    return q.float().mul_(scale.float()[:, None])


def int4_group_size(in_features: int, wanted: int) -> int:
    """The largest group not above ``wanted`` that divides a row; 32 (with padding) if none does."""
    for size in INT4_GROUP_SIZES:
        if size <= wanted and in_features % size == 0:
            return size
    return INT4_GROUP_SIZES[-1]


def int4_shapes(out_features: int, in_features: int, group_size: int) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Shapes of the packed bytes and of the scales of one weight."""
    rows, columns = round_up(out_features, INT4_ROW_MULTIPLE), round_up(in_features, group_size)
    return (rows, columns // 2), (columns // group_size, rows, 2)


def quantize_int4(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """weight [out, in], any float type → packed bytes and scales in ``FILE_LAYOUT``, see ``int4_shapes``."""
    packed_shape, scale_shape = int4_shapes(weight.shape[0], weight.shape[1], group_size)
    packed = torch.empty(packed_shape, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(scale_shape, dtype=torch.bfloat16, device=weight.device)
    for start in range(0, packed_shape[0], QUANTIZED_BLOCK_ROWS):
        rows = slice(start, min(start + QUANTIZED_BLOCK_ROWS, packed_shape[0]))
        block = pad_to(weight[rows].float(), rows.stop - start, packed_shape[1] * 2)
        packed[rows], scales[:, rows] = _quantize_int4_block(block, group_size)
    return packed, scales


def _quantize_int4_block(block: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    grouped = block.view(block.shape[0], -1, group_size)
    low, high = grouped.amin(dim=2), grouped.amax(dim=2)  # several times as fast as aminmax
    scale = ((high - low) / INT4_STEPS).clamp(min=TINY_SCALE).bfloat16()
    zero = (low + scale.float() * INT4_ZERO).bfloat16()
    q = (grouped - zero.float()[..., None]).div_(scale.float()[..., None])
    q = q.round_().add_(INT4_ZERO).clamp_(0, INT4_STEPS).to(torch.uint8)
    return pack_int4(q.view(block.shape)), torch.stack([scale, zero], dim=-1).transpose(0, 1)


@dataclass(frozen=True)
class Int4Layout:
    """Order of the nibbles in a block of rows."""

    block_rows: int
    halves: bool
    """Rows j and j + block_rows / 2 share a byte; otherwise rows 2j and 2j + 1, as in any last, smaller block."""


FILE_LAYOUT = Int4Layout(64, True)
"""The layout of files and of compiled code; also that of PyTorch's AVX-512 kernel."""

KERNEL_LAYOUTS = (FILE_LAYOUT, Int4Layout(32, True), Int4Layout(32, False))
"""Layouts that PyTorch's CPU kernels are known to read, by instruction set."""

ROW_LAYOUT = Int4Layout(1, False)
"""The layout of the GPU kernels: columns 2j and 2j + 1 of one row share a byte, low half first."""


def pack_int4(q: Tensor, layout: Int4Layout = FILE_LAYOUT) -> Tensor:
    """q [rows, columns] uint8 in 0..15, rows even → [rows, columns / 2] uint8."""
    if layout == ROW_LAYOUT:
        return q[:, ::2] | q[:, 1::2] << 4
    rows, columns = q.shape
    whole = rows // layout.block_rows * layout.block_rows
    if layout.halves:
        low, high = q[:whole].view(-1, 2, layout.block_rows // 2, columns).unbind(1)
    else:
        low, high = q[:whole].view(-1, layout.block_rows // 2, 2, columns).unbind(2)
    blocks = (low | high << 4).transpose(1, 2)
    tail = (q[whole::2] | q[whole + 1 :: 2] << 4).t()
    return torch.cat([blocks.reshape(-1), tail.reshape(-1)]).view(rows, columns // 2)


def unpack_int4(packed: Tensor, layout: Int4Layout = FILE_LAYOUT) -> Tensor:
    """[rows, columns / 2] uint8 → q [rows, columns] uint8 in 0..15."""
    rows, columns = packed.shape[0], packed.shape[1] * 2
    if layout == ROW_LAYOUT:
        return torch.stack([packed & 15, packed >> 4], dim=-1).view(rows, columns)
    whole = rows // layout.block_rows * layout.block_rows
    q = torch.empty(rows, columns, dtype=torch.uint8, device=packed.device)
    blocks = packed[:whole].reshape(-1, columns, layout.block_rows // 2).transpose(1, 2)
    if layout.halves:
        low, high = q[:whole].view(-1, 2, layout.block_rows // 2, columns).unbind(1)
    else:
        low, high = q[:whole].view(-1, layout.block_rows // 2, 2, columns).unbind(2)
    torch.bitwise_and(blocks, 15, out=low)
    torch.bitwise_right_shift(blocks, 4, out=high)
    if whole < rows:
        tail = packed[whole:].reshape(columns, -1).t()
        q[whole::2], q[whole + 1 :: 2] = tail & 15, tail >> 4
    return q


def dequantize_int4(packed: Tensor, scale: Tensor, layout: Int4Layout = FILE_LAYOUT) -> Tensor:
    """Packed bytes [rows, columns / 2], scales [groups, rows, 2] → float32 [rows, columns], padding included."""
    per_group = scale.float().permute(2, 1, 0)[..., None]
    q = unpack_int4(packed, layout).float().sub_(INT4_ZERO)
    return q.view(q.shape[0], scale.shape[0], -1).mul_(per_group[0]).add_(per_group[1]).view(q.shape)


def scales_by_block(scale: Tensor) -> Tensor:
    """Scales [groups, rows, 2] → the same numbers flat, ordered by block of 64 rows.

    Compiled code reads one block after the other, and so finds its scales in one stream.
    """
    groups, rows, _ = scale.shape
    whole = rows // FILE_LAYOUT.block_rows * FILE_LAYOUT.block_rows
    blocks = scale[:, :whole].reshape(groups, -1, FILE_LAYOUT.block_rows, 2).transpose(0, 1)
    return torch.cat([blocks.reshape(-1), scale[:, whole:].reshape(-1)])


def scales_by_group(blocks: Tensor, groups: int, rows: int) -> Tensor:
    """The inverse of ``scales_by_block``: → [groups, rows, 2]."""
    whole = rows // FILE_LAYOUT.block_rows * FILE_LAYOUT.block_rows
    first, tail = blocks.split([groups * whole * 2, groups * (rows - whole) * 2])
    first = first.view(-1, groups, FILE_LAYOUT.block_rows, 2).transpose(0, 1).reshape(groups, whole, 2)
    return torch.cat([first, tail.view(groups, rows - whole, 2)], dim=1)


@cache
def cpu_int4_layout() -> Int4Layout | None:
    """The layout that PyTorch's CPU kernel reads on this machine; None for an unknown one."""
    q = torch.arange(80 * 32, dtype=torch.int32).mul_(7).bitwise_right_shift(1).bitwise_and_(INT4_STEPS).view(80, 32)
    packed = torch._convert_weight_to_int4pack_for_cpu(q, 1)
    for layout in KERNEL_LAYOUTS:
        if torch.equal(packed, pack_int4(q.to(torch.uint8), layout)):
            return layout
    return None
