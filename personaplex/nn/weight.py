"""Weight matrices in memory: one class for each number format, with the products it knows.

Quantised weights are multiplied by compiled code (``native/``). Without it PyTorch's packed kernels take few rows,
and many rows (a prompt) are multiplied with the dequantised weight. Every product of a quantised weight rounds the
activations on the way in, whatever their type: PyTorch's kernels to bfloat16, compiled code as ``multiply`` and
``rounding_of_many`` say.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personaplex.native.library import (
    Matrix,
    MatrixKind,
    address,
    multiply,
    multiply_many,
    native_library,
    rounding_of_many,
    unpack_int4_rows,
)
from personaplex.nn.packing import (
    FILE_LAYOUT,
    INT4_GROUP_SIZES,
    ROW_LAYOUT,
    Int4Layout,
    PackedWeight,
    WeightFormat,
    cpu_int4_layout,
    dequantize_int4,
    dequantize_int8,
    pack_int4,
    pad_to,
    round_up,
    scales_by_block,
    scales_by_group,
    unpack_int4,
)
from personaplex.nn.precision import multiplies_bfloat16, multiplies_tiles, product_dtype

INT8_COLUMN_MULTIPLE = 32
INT8_ROW_MULTIPLE = 4
"""PyTorch's int8 kernel may read this many columns and rows at once without a check, so weights are padded to it."""

DEQUANTIZED_BLOCK_ROWS = 128
"""Rows of a weight dequantised at once by PyTorch: few enough for the block to stay in the CPU's cache."""

WIDENED_BLOCK_ROWS = 512
"""Rows dequantised at once where that is cheap, by compiled code or by widening: enough for an efficient product."""

NATIVE_MAX_ROWS = 8
"""Rows of activations up to which compiled code reads a weight as stored and hardly rounds the activations."""

NATIVE_MAX_COLUMNS = 1 << 15
"""Columns of a quantised weight that ``cpp/`` reserves room for."""


class RowsKernel(Protocol):
    """A GPU kernel for the product of a quantised weight with the rows of a prompt."""

    max_rows: int

    def multiply(self, rows: Tensor, weight: QuantizedWeight) -> Tensor:
        """rows [n ≤ max_rows, in] bfloat16 → [n, out] bfloat16."""
        ...


class Weight(nn.Module):
    """A weight matrix [out, in] in one number format; ``data`` and ``scale`` are its tensors.

    ``multiply`` branches on shapes only, so a CUDA graph can capture it.
    """

    format: WeightFormat
    data: Tensor
    scale: Tensor | None
    group_size = 0
    """Columns that share a scale, of int4."""

    block_rows = WIDENED_BLOCK_ROWS
    """Rows made float at once on a CPU by ``_multiply_in_blocks``."""

    matrix_kind: MatrixKind | None = None
    """The format as compiled code calls it; None where compiled code does not read this layout."""

    def __init__(self, out_features: int, in_features: int, data: Tensor, scale: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.register_buffer("data", data, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that one use reads, by name."""
        return {"data": self.data} if self.scale is None else {"data": self.data, "scale": self.scale}

    def multiply(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out] in x's type."""
        rows = x.reshape(-1, self.in_features)
        needs_gradient = torch.is_grad_enabled() and x.requires_grad  # which kernels do not give
        y = self._multiply_in_blocks(rows) if needs_gradient else self._multiply_rows(rows)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def plain_rows(self, start: int, stop: int) -> Tensor:
        """Rows start..stop as float32 [≤ stop − start, in]; both are multiples of a packed block, or the end."""
        return self._padded_rows(start, stop)[: self.out_features - start, : self.in_features]

    def native_matrix(self) -> Matrix:
        """The weight as compiled code sees it; it points into ``tensors`` and does not keep them alive."""
        assert self.matrix_kind is not None, f"{type(self).__name__} is not laid out for compiled code"
        assert not self.format.quantized or self.in_features <= NATIVE_MAX_COLUMNS, self.in_features
        return Matrix(
            address(self.data), None if self.scale is None else address(self.scale), self.out_features,
            self.in_features, self.data.shape[1], self.matrix_kind, self.group_size, self.data.shape[0],
        )  # fmt: skip

    def _multiply_rows(self, rows: Tensor) -> Tensor:
        """rows [n, in] → [n, out] of any float type, by the fastest way that there is here."""
        if self._compiled_code_takes(rows):
            return self._multiply_compiled(rows)
        return self._multiply_in_blocks(rows)

    def _padded_rows(self, start: int, stop: int) -> Tensor:
        raise NotImplementedError

    def _compiled_code_takes(self, rows: Tensor) -> bool:
        """Whether our compiled code multiplies these rows, and faster than PyTorch does."""
        if rows.device.type != "cpu" or self.matrix_kind is None or native_library() is None:
            return False
        if rows.shape[0] <= NATIVE_MAX_ROWS or not multiplies_bfloat16():
            return True
        return not multiplies_tiles() and rounding_of_many(self.native_matrix()) is not torch.float32

    def _multiply_compiled(self, rows: Tensor) -> Tensor:
        if rows.shape[0] <= NATIVE_MAX_ROWS:
            return multiply(self.native_matrix(), rows.float().contiguous())
        many = rows if rows.dtype is torch.bfloat16 else rows.float()
        return multiply_many(self.native_matrix(), many.contiguous())

    def _multiply_in_blocks(self, rows: Tensor) -> Tensor:
        """rows [n, in] → [n, out] by matmuls with one block of the weight after the other as floats."""
        x = rows.to(torch.bfloat16 if rows.is_cuda or multiplies_bfloat16() else torch.float32)
        step = self.data.shape[0] if x.is_cuda else self.block_rows
        starts = range(0, self.out_features, step)
        return torch.cat([F.linear(x, self.plain_rows(start, start + step).to(x.dtype)) for start in starts], dim=1)


class FloatWeight(Weight):
    """A float32 or bfloat16 weight: ``data`` [out, in]. Training replaces ``data`` by a parameter."""

    def __init__(self, data: Tensor, format: WeightFormat) -> None:
        super().__init__(data.shape[0], data.shape[1], data)
        self.format = format
        self.matrix_kind = MatrixKind.FLOAT32 if format is WeightFormat.FLOAT32 else MatrixKind.BFLOAT16

    @classmethod
    def load(cls, weight: Tensor, format: WeightFormat, device: torch.device | str) -> FloatWeight:
        """weight [out, in] of any float type; a copy unless it has the wanted type and device already."""
        return cls(weight.to(device=device, dtype=format.dtype).contiguous(), format)

    def multiply(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out] in x's type; many rows are widened where a CPU does not multiply bfloat16."""
        few = x.numel() <= NATIVE_MAX_ROWS * self.in_features
        if few or product_dtype(self.data) is self.data.dtype:
            return F.linear(x.to(self.data.dtype), self.data).to(x.dtype)
        return super().multiply(x)

    def _padded_rows(self, start: int, stop: int) -> Tensor:
        return self.data[start:stop].float()


class QuantizedWeight(Weight):
    """A weight of int8 or int4."""

    block_rows = DEQUANTIZED_BLOCK_ROWS
    packed_kernel_max_rows: int
    """Rows of activations up to which PyTorch's packed kernel beats dequantising first, as measured."""

    rows_kernel: RowsKernel | None = None
    """A GPU kernel for the rows of a prompt; set for a whole model by ``use_rows_kernel``."""

    def _multiply_rows(self, rows: Tensor) -> Tensor:
        kernel = self.rows_kernel
        if kernel is not None and rows.is_cuda and rows.shape[0] <= kernel.max_rows:
            return kernel.multiply(rows.to(torch.bfloat16), self)
        if not self._compiled_code_takes(rows) and self._packed_kernel_takes(rows):
            return self._multiply_packed(rows.to(torch.bfloat16))[:, : self.out_features]
        return super()._multiply_rows(rows)

    def _packed_kernel_takes(self, rows: Tensor) -> bool:
        """Whether PyTorch's packed kernel multiplies these rows, and faster than dequantising does."""
        few = rows.shape[0] <= self.packed_kernel_max_rows
        return few and rows.device.type == "cpu" and native_library() is None and self._has_packed_kernel()

    def _has_packed_kernel(self) -> bool:
        raise NotImplementedError

    def _multiply_packed(self, rows: Tensor) -> Tensor:
        """rows [n, in] bfloat16 → [n, padded out] bfloat16."""
        raise NotImplementedError


class Int8Weight(QuantizedWeight):
    """int8 with a scale for each row: ``data`` [padded out, padded in] int8, ``scale`` [padded out] bfloat16."""

    format = WeightFormat.INT8
    matrix_kind = MatrixKind.INT8
    packed_kernel_max_rows = 64
    scale: Tensor

    @classmethod
    def load(cls, packed: PackedWeight, device: torch.device | str) -> Int8Weight:
        """A packed weight; its data is not copied on a CPU unless it needs padding."""
        out_features, in_features = packed.data.shape
        rows, columns = round_up(out_features, INT8_ROW_MULTIPLE), round_up(in_features, INT8_COLUMN_MULTIPLE)
        data, scale = pad_to(packed.data, rows, columns), pad_to(packed.scale.to(torch.bfloat16), rows)
        return cls(out_features, in_features, data.to(device), scale.to(device))

    def _padded_rows(self, start: int, stop: int) -> Tensor:
        return dequantize_int8(self.data[start:stop], self.scale[start:stop])

    def _has_packed_kernel(self) -> bool:
        return True

    def _multiply_packed(self, rows: Tensor) -> Tensor:
        x = pad_to(rows, rows.shape[0], self.data.shape[1])
        return torch._weight_int8pack_mm(x, self.data, self.scale)


class Int4Weight(QuantizedWeight):
    """int4 for PyTorch's kernels and for GPUs: ``data`` [rows, columns / 2] uint8 in any layout of ``packing.py``,
    ``scale`` [groups, rows, 2] bfloat16; rows and columns padded.
    """

    format = WeightFormat.INT4
    packed_kernel_max_rows = 128
    scale: Tensor

    def __init__(
        self, out_features: int, in_features: int, data: Tensor, scale: Tensor, group_size: int,
        layout: Int4Layout = FILE_LAYOUT,
    ) -> None:  # fmt: skip
        assert group_size in INT4_GROUP_SIZES, group_size
        super().__init__(out_features, in_features, data, scale)
        self.group_size, self.layout = group_size, layout

    @classmethod
    def load(cls, packed: PackedWeight, out_features: int, in_features: int, device: torch.device | str) -> Int4Weight:
        """A packed weight in the layout that multiplies fastest on the device; not copied where that is the file's."""
        size, device = (out_features, in_features), torch.device(device)
        if device.type != "cpu":
            weight = cls(*size, packed.data.to(device), packed.scale.to(device), packed.group_size)
            return weight.in_rows() if device.type == "cuda" else weight
        if native_library() is not None:
            return BlockInt4Weight(*size, packed.data, scales_by_block(packed.scale), packed.group_size)
        layout = cpu_int4_layout() or FILE_LAYOUT
        data = packed.data if layout == FILE_LAYOUT else pack_int4(unpack_int4(packed.data), layout)
        return cls(*size, data, packed.scale, packed.group_size, layout)

    def in_rows(self) -> Int4Weight:
        """The same weight in the layout of the GPU kernels."""
        if self.layout == ROW_LAYOUT:
            return self
        data = pack_int4(unpack_int4(self.data, self.layout), ROW_LAYOUT)
        return Int4Weight(
            self.out_features, self.in_features, data, self._scales_by_group(), self.group_size, ROW_LAYOUT
        )

    def _scales_by_group(self) -> Tensor:
        """[groups, rows, 2] bfloat16."""
        return self.scale

    def _padded_rows(self, start: int, stop: int) -> Tensor:
        return dequantize_int4(self.data[start:stop], self._scales_by_group()[:, start:stop], self.layout)

    def _has_packed_kernel(self) -> bool:
        return self.layout == cpu_int4_layout()

    def _multiply_packed(self, rows: Tensor) -> Tensor:
        x = pad_to(rows, rows.shape[0], self.data.shape[1] * 2).contiguous()
        return torch._weight_int4pack_mm_for_cpu(x, self.data, self.group_size, self.scale)


class BlockInt4Weight(Int4Weight):
    """int4 for compiled code: ``data`` in the files' layout, ``scale`` flat, ordered by block of 64 rows."""

    matrix_kind = MatrixKind.INT4
    block_rows = WIDENED_BLOCK_ROWS

    def _scales_by_group(self) -> Tensor:
        rows, groups = self.data.shape[0], self.data.shape[1] * 2 // self.group_size
        return scales_by_group(self.scale, groups, rows)

    def _padded_rows(self, start: int, stop: int) -> Tensor:
        rows = self.data.shape[0]
        if stop <= rows or rows % FILE_LAYOUT.block_rows == 0:
            return unpack_int4_rows(self.native_matrix(), start, min(stop, rows))
        return super()._padded_rows(start, stop)

    def _has_packed_kernel(self) -> bool:
        return False  # PyTorch's kernel wants the scales by group
