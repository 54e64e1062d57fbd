"""Linear layers without bias, whose weight is loaded later in one of the formats of ``weight.py``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from personaplex.nn.packing import PackedWeight, WeightFormat
from personaplex.nn.weight import FloatWeight, Int4Weight, Int8Weight, QuantizedWeight, RowsKernel, Weight


class Linear(nn.Module):
    """``x [..., in] → [..., out]`` without bias, in x's type; nothing is allocated until the weight is loaded."""

    weight: Weight | None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.register_module("weight", None)

    def extra_repr(self) -> str:
        name = "not loaded" if self.weight is None else self.weight.format.value
        return f"{self.in_features}, {self.out_features}, {name}"

    @property
    def loaded(self) -> Weight:
        """The weight, which must have been loaded."""
        assert self.weight is not None, "no weight is loaded"
        return self.weight

    @property
    def nbytes(self) -> int:
        """Bytes that one use reads."""
        return 0 if self.weight is None else sum(tensor.nbytes for tensor in self.weight.tensors().values())

    @torch.no_grad()
    def load_(
        self, weight: Tensor, format: WeightFormat, device: torch.device | str = "cpu", group_size: int = 32
    ) -> None:
        """Take a plain weight [out, in] of any float type; quantise it if the format says so.

        The tensor may be a view of a file: it is copied unless it has the wanted type and device already.
        """
        assert weight.shape == (self.out_features, self.in_features), weight.shape
        if format.quantized:
            self.load_packed_(PackedWeight.quantized(weight, format, group_size), device)
        else:
            self.weight = FloatWeight.load(weight, format, device)

    @torch.no_grad()
    def load_packed_(self, packed: PackedWeight, device: torch.device | str = "cpu") -> None:
        """Take a quantised weight; on the CPU without a copy where the kernel reads the file's layout."""
        if packed.format is WeightFormat.INT8:
            self.weight = Int8Weight.load(packed, device)
        else:
            self.weight = Int4Weight.load(packed, self.out_features, self.in_features, device)

    @torch.no_grad()
    def use_row_layout_(self) -> None:
        """Repack an int4 weight for the GPU kernels; other formats stay as they are."""
        if isinstance(self.weight, Int4Weight):
            self.weight = self.weight.in_rows()

    def forward(self, x: Tensor) -> Tensor:
        return self.loaded.multiply(x)


def linear_bytes(module: nn.Module) -> int:
    """Bytes of all linear weights in a module; a frame reads each of them once."""
    return sum(part.nbytes for part in module.modules() if isinstance(part, Linear))


def use_rows_kernel(model: nn.Module, kernel: RowsKernel | None) -> None:
    """Let a model's quantised weights multiply a prompt's rows by a GPU kernel, or without one again (None)."""
    for module in model.modules():
        if isinstance(module, QuantizedWeight):
            module.rows_kernel = kernel
