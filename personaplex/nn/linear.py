"""Linear layers whose weights are float32, bfloat16, int8 (per row) or int4 (per group).

``Linear`` holds nothing until ``load_`` or ``load_packed_`` is called. Quantised weights run through
compiled code (``native.py``); without it through PyTorch's packed kernels for few rows, and dequantised for
many (a prompt). ``WeightEntry`` ties a tensor of a checkpoint to the layers it feeds.

What multiplies quantised weights rounds activations on the way in, whatever their type: PyTorch's kernels to
bfloat16, compiled code as it says (``native.multiply``, ``native.rounding_of_many``). The answer comes back in
the type of the activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personaplex.native.library import (
    Matrix,
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
    cpu_int4_layout,
    dequantize_int4,
    dequantize_int8,
    int4_group_size,
    pack_int4,
    pad_to,
    quantize_int4,
    quantize_int8,
    round_up,
    scales_by_block,
    scales_by_group,
    unpack_int4,
)
from personaplex.nn.precision import multiplies_bfloat16, multiplies_tiles, product_dtype

INT8_COLUMN_MULTIPLE = 32
INT8_ROW_MULTIPLE = 4
"""What the CPU's int8 kernel may read at once; it does not check, so weights are padded to it."""

DEQUANTIZED_BLOCK_ROWS = 128
"""Rows of a weight dequantised at once: small enough for the block to stay in the CPU's cache."""


UNPACKED_BLOCK = FILE_LAYOUT.block_rows
UNPACKED_BLOCK_ROWS = 512
"""The same where it costs little, by compiled code or by widening: large enough for an efficient product."""


class WeightFormat(Enum):
    """How a linear weight is held in memory."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def quantized(self) -> bool:
        return self in (WeightFormat.INT8, WeightFormat.INT4)

    @property
    def packed_max_rows(self) -> int:
        """Rows of activations up to which the CPU's packed kernel beats dequantising first, as measured."""
        return 64 if self is WeightFormat.INT8 else 128

    @property
    def dtype(self) -> torch.dtype:
        """Type of plain (unquantised) linear weights in this format."""
        return torch.float32 if self is WeightFormat.FLOAT32 else torch.bfloat16


NATIVE_MAX_ROWS = 8
"""Rows of activations up to which a weight is read as it lies, and activations are hardly rounded."""

NATIVE_MAX_COLUMNS = 1 << 15
"""Of a quantised weight: what ``cpp/matrix.h`` has room for."""

NATIVE_KINDS = {WeightFormat.FLOAT32: 0, WeightFormat.BFLOAT16: 1, WeightFormat.INT8: 2, WeightFormat.INT4: 3}


def _int4_layout() -> Int4Layout | None:
    """What the code that multiplies few rows here reads: our own if it is compiled, else PyTorch's."""
    return FILE_LAYOUT if native_library() is not None else cpu_int4_layout()


@dataclass(frozen=True)
class PackedWeight:
    """One quantised weight in the layout of ``packing.py`` (on the CPU, maybe memory-mapped).

    int8: ``data`` [out, in] int8, ``scale`` [out] float32.
    int4: ``data`` [padded out, padded in / 2] uint8, ``scale`` [groups, padded out, 2] bfloat16.
    """

    format: WeightFormat
    data: Tensor
    scale: Tensor
    group_size: int = 0

    @classmethod
    def quantized(cls, weight: Tensor, format: WeightFormat, group_size: int) -> PackedWeight:
        """Pack a plain weight [out, in]; ``group_size`` is the largest that int4 may use."""
        if format is WeightFormat.INT8:
            return cls(format, *quantize_int8(weight))
        assert format is WeightFormat.INT4, format
        group_size = int4_group_size(weight.shape[1], group_size)
        return cls(format, *quantize_int4(weight, group_size), group_size)


def withdraw_kernels(model: nn.Module) -> None:
    """Let quantised layers multiply without a GPU's kernel again."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.few_rows = None


@contextmanager
def without_kernels(model: nn.Module) -> Iterator[None]:
    """Quantised layers multiply without a GPU's kernel meanwhile: the reference that kernels are held against."""
    held = [(module, module.few_rows) for module in model.modules() if isinstance(module, Linear)]
    try:
        withdraw_kernels(model)
        yield
    finally:
        for linear, kernel in held:
            linear.few_rows = kernel


class Linear(nn.Module):
    """``x [..., in] -> [..., out]`` without bias, in the type of ``x``.

    Nothing is allocated until the weight is loaded. ``forward`` branches on shapes only, so a
    CUDA graph can capture it.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.format: WeightFormat | None = None
        self.group_size = 0
        self.register_buffer("data", None, persistent=False)
        self.register_buffer("scale", None, persistent=False)
        self._layout: Int4Layout | None = None
        self._by_block = False
        """Whether an int4 weight lies as compiled code reads it, the scales one block of rows after the other."""
        self.few_rows: tuple[Callable[[Tensor, Linear], Tensor], int] | None = None
        """A GPU's kernel for a quantised weight, and how many rows it takes; set by who brings it."""

    def extra_repr(self) -> str:
        name = self.format.value if self.format else "not loaded"
        return f"{self.in_features}, {self.out_features}, {name}"

    @property
    def nbytes(self) -> int:
        """Bytes that one use reads."""
        return sum(t.nbytes for t in (self.data, self.scale) if t is not None)

    @torch.no_grad()
    def load_(
        self, weight: Tensor, format: WeightFormat, device: torch.device | str = "cpu", group_size: int = 32
    ) -> None:
        """Take a plain weight [out, in] of any float type; quantise it if the format says so.

        The tensor may be a view of a file: it is copied unless it already has the wanted type and place.
        """
        assert weight.shape == (self.out_features, self.in_features), weight.shape
        if format.quantized:
            self.load_packed_(PackedWeight.quantized(weight, format, group_size), device)
        else:
            self._set(format, weight.to(device=device, dtype=format.dtype).contiguous(), None, 0)

    @torch.no_grad()
    def load_packed_(self, packed: PackedWeight, device: torch.device | str = "cpu") -> None:
        """Take a quantised weight; on the CPU without a copy where the kernel reads it as it is."""
        device, by_block = torch.device(device), False
        if packed.format is WeightFormat.INT8:
            rows, columns = (
                round_up(self.out_features, INT8_ROW_MULTIPLE),
                round_up(self.in_features, INT8_COLUMN_MULTIPLE),
            )
            data, scale = pad_to(packed.data, rows, columns), pad_to(packed.scale.to(torch.bfloat16), rows)
        else:
            assert packed.format is WeightFormat.INT4 and packed.group_size in INT4_GROUP_SIZES
            data, scale = packed.data, packed.scale
            self._layout = _int4_layout() if device.type == "cpu" else None
            if self._layout not in (None, FILE_LAYOUT):
                data = pack_int4(unpack_int4(data), self._layout)
            by_block = device.type == "cpu" and native_library() is not None
            scale = scales_by_block(scale) if by_block else scale
        self._set(packed.format, data.to(device), scale.to(device), packed.group_size, by_block)
        if packed.format is WeightFormat.INT4 and device.type == "cuda":
            self.use_row_layout_()

    @torch.no_grad()
    def use_row_layout_(self) -> None:
        """Repack an int4 weight as the GPU's kernels read it."""
        assert self.format is WeightFormat.INT4, self.format
        if self._layout != ROW_LAYOUT:
            self.data = pack_int4(unpack_int4(self.data, self._layout or FILE_LAYOUT), ROW_LAYOUT)
            self.scale, self._by_block = self._group_scales(), False
            self._layout = ROW_LAYOUT

    def _group_scales(self) -> Tensor:
        """An int4 weight's scales [groups, rows, 2]."""
        groups = self.data.shape[1] * 2 // self.group_size
        return scales_by_group(self.scale, groups, self.data.shape[0]) if self._by_block else self.scale

    def _set(
        self, format: WeightFormat, data: Tensor, scale: Tensor | None, group_size: int, by_block: bool = False
    ) -> None:
        self.format, self.data, self.scale, self.group_size, self._by_block = format, data, scale, group_size, by_block

    def forward(self, x: Tensor) -> Tensor:
        assert self.format is not None, "no weight is loaded"
        rows = x.reshape(-1, self.in_features)
        if not self.format.quantized and not self._widened(rows):
            return F.linear(x.to(self.data.dtype), self.data).to(x.dtype)
        if torch.is_grad_enabled() and x.requires_grad:  # which kernels do not give
            y = self._in_blocks(rows)
        elif self.few_rows is not None and x.is_cuda and rows.shape[0] <= self.few_rows[1]:
            y = self.few_rows[0](rows.to(torch.bfloat16), self)
        elif self._compiled_for(rows):
            matrix = self.native_matrix()
            if rows.shape[0] <= NATIVE_MAX_ROWS:
                y = multiply(matrix, rows.float().contiguous())
            else:
                y = multiply_many(matrix, (rows if rows.dtype is torch.bfloat16 else rows.float()).contiguous())
        elif self._kernel_for(rows):
            y = self._packed(rows)
        else:
            y = self._in_blocks(rows)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def native_matrix(self) -> Matrix:
        """The weight as compiled code sees it; it points into this layer's tensors."""
        assert self.format is not None and self._layout in (None, FILE_LAYOUT), (self.format, self._layout)
        assert not self.format.quantized or self.in_features <= NATIVE_MAX_COLUMNS, self.in_features
        return Matrix(
            address(self.data), None if self.scale is None else address(self.scale), self.out_features,
            self.in_features, self.data.shape[1], NATIVE_KINDS[self.format], self.group_size, self.data.shape[0],
        )  # fmt: skip

    def _widened(self, x: Tensor) -> bool:
        """Whether a plain weight is made float32, block by block, for these rows: a few cost less as they are."""
        return x.shape[0] > NATIVE_MAX_ROWS and product_dtype(self.data) is not self.data.dtype

    def _compiled_for(self, x: Tensor) -> bool:
        """Whether our own compiled code takes these rows, and fast."""
        if x.device.type != "cpu" or self._layout not in (None, FILE_LAYOUT) or native_library() is None:
            return False
        if x.shape[0] <= NATIVE_MAX_ROWS or not multiplies_bfloat16():
            return True
        return not multiplies_tiles() and rounding_of_many(self.native_matrix()) is not torch.float32

    def _kernel_for(self, x: Tensor) -> bool:
        """Whether PyTorch's packed kernel takes these rows, and fast."""
        has_kernel = self.format is WeightFormat.INT8 or (
            self._layout is not None and self._layout == cpu_int4_layout()
        )
        few = x.shape[0] <= self.format.packed_max_rows
        return has_kernel and few and x.device.type == "cpu" and native_library() is None

    def _packed(self, x: Tensor) -> Tensor:
        """x [rows, in] → [rows, out] bfloat16 through PyTorch's kernel for packed weights."""
        x = x.to(torch.bfloat16)
        if self.format is WeightFormat.INT8:
            y = torch._weight_int8pack_mm(pad_to(x, x.shape[0], self.data.shape[1]), self.data, self.scale)
        else:
            x = pad_to(x, x.shape[0], self.data.shape[1] * 2).contiguous()
            y = torch._weight_int4pack_mm_for_cpu(x, self.data, self.group_size, self.scale)
        return y[:, : self.out_features]

    def _in_blocks(self, x: Tensor) -> Tensor:
        """x [rows, in] → [rows, out] by a matmul with one block of the weight after the other made floats."""
        x = x.to(torch.bfloat16 if x.is_cuda or multiplies_bfloat16() else torch.float32)
        cheap = self._by_block or not self.format.quantized
        step = self.data.shape[0] if x.is_cuda else UNPACKED_BLOCK_ROWS if cheap else DEQUANTIZED_BLOCK_ROWS
        starts = range(0, self.out_features, step)
        return torch.cat([F.linear(x, self._plain_rows(start, start + step).to(x.dtype)) for start in starts], dim=1)

    def _plain_rows(self, start: int, stop: int) -> Tensor:
        """Rows start..stop of the weight as float32; both are multiples of a packed block, or the end."""
        if not self.format.quantized:
            plain = self.data[start:stop].float()
        elif self.format is WeightFormat.INT8:
            plain = dequantize_int8(self.data[start:stop], self.scale[start:stop])
        elif self._by_block and (stop <= self.data.shape[0] or self.data.shape[0] % UNPACKED_BLOCK == 0):
            plain = unpack_int4_rows(self.native_matrix(), start, min(stop, self.data.shape[0]))
        else:
            plain = dequantize_int4(
                self.data[start:stop], self._group_scales()[:, start:stop], self._layout or FILE_LAYOUT
            )
        return plain[: self.out_features - start, : self.in_features]


@dataclass(frozen=True)
class WeightEntry:
    """One tensor of a checkpoint file and where it goes.

    Models list these; what a file lacks, or has beyond them, is refused.
    """

    key: str
    shape: tuple[int, ...]
    linears: tuple[tuple[Linear, slice], ...] = ()
    """Layers fed by rows of this tensor: stacked depth weights feed one layer a step."""
    parameter: tuple[nn.Module, str] | None = None
    """A plain tensor: set as this attribute."""
    higher_precision: bool = False
    """Never quantised and never below its stored type (embeddings, norms, the codec)."""
    used: bool = True
    """False: must be in the file, with that shape, but is not read."""
