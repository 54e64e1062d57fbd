"""The codec's layers as matrix products.

On a CPU a convolution with few channels trains several times faster as one matrix product over
folded time: `fold` outputs are computed together from a banded matrix made of the ordinary
weight. What a block spills past its end is added to the next block. All layers are
channels-last, [B, T, C] in any folding of the last two axes, and causal: zeros before the start.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def elu(x: Tensor) -> Tensor:
    """ELU, spelled so that it stays in bfloat16 and fuses."""
    return torch.where(x > 0, x, torch.exp(torch.clamp(x, max=0.0)) - 1)


def _uniform(shape: tuple[int, ...], fan_in: float, gain: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-1, 1) * gain * math.sqrt(3 / fan_in) * 0.8)


def _banded(weight: Tensor, rows: int, shifts: list[int]) -> Tensor:
    """weight: [O, I, K] -> [rows * I, len(shifts) * O]: column j holds the kernel, moved down by shifts[j] rows.

    Made of pads alone, whose gradient is a slice; gathering by index would scatter, which is slow.
    """
    kernel = weight.shape[2]
    columns = [F.pad(weight, (shift, rows - kernel - shift)) for shift in shifts]
    return torch.stack(columns).permute(3, 2, 0, 1).reshape(rows * weight.shape[1], -1)


def _carry(product: Tensor, kept: int, spilled: int) -> Tensor:
    """Adds what each block (axis 1) spilled past its end to the block after it."""
    if not spilled:
        return product
    return product[..., :kept] + F.pad(product[:, :-1, kept:], (0, kept - spilled, 1, 0))


class Conv(nn.Module):
    """Causal convolution, weight [out, in, kernel], of stride up to its kernel."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, fold: int = 1, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.stride, self.fold = inputs, outputs, stride, fold
        self.past = -(-(kernel - stride) // stride)  # output steps that one input still reaches
        if self.past > fold:
            raise ValueError(f"fold {fold} is too short for kernel {kernel} and stride {stride}; use {self.past}")
        self.weight = _uniform((outputs, inputs, kernel), inputs * kernel, gain)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.shifts = [column * stride - (kernel - stride) for column in range(fold + self.past)]

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.reshape(x.shape[0], -1, self.fold * self.stride * self.inputs)
        product = blocks @ _banded(self.weight, self.fold * self.stride, self.shifts).to(blocks.dtype)
        y = _carry(product, self.fold * self.outputs, self.past * self.outputs)
        return y + self.bias.to(y.dtype).repeat(self.fold)


class WideConv(nn.Module):
    """Causal convolution of stride 1 that unfolds its input: for few inputs or a kernel longer than a block."""

    def __init__(self, inputs: int, outputs: int, kernel: int, fold: int = 1) -> None:
        super().__init__()
        self.inputs, self.outputs, self.kernel, self.fold = inputs, outputs, kernel, fold
        self.weight = _uniform((outputs, inputs, kernel), inputs * kernel)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.length = fold - 1 + kernel

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = F.pad(x.reshape(batch, -1, self.inputs), (0, 0, self.kernel - 1, 0))
        unfolded = x.unfold(1, self.length, self.fold).transpose(2, 3).reshape(batch, -1, self.length * self.inputs)
        y = unfolded @ _banded(self.weight, self.length, list(range(self.fold))).to(unfolded.dtype)
        return y + self.bias.to(y.dtype).repeat(self.fold)


class TransposedConv(nn.Module):
    """Causal transposed convolution, weight [in, out, kernel], kernel twice the stride, the tail cut off."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.stride = inputs, outputs, stride
        self.weight = _uniform((inputs, outputs, 2 * stride), 2 * inputs)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], -1, self.inputs)
        product = x @ self.weight.transpose(1, 2).reshape(self.inputs, -1).to(x.dtype)
        half = self.stride * self.outputs
        y = _carry(product, half, half)
        return y + self.bias.to(y.dtype).repeat(self.stride)


class Residual(nn.Module):
    """ELU, kernel 3, ELU, kernel 1, and the identity beside them."""

    def __init__(self, channels: int, fold: int) -> None:
        super().__init__()
        self.wide = Conv(channels, channels // 2, 3, 1, fold)
        self.point = Conv(channels // 2, channels, 1, 1, fold, gain=0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.point(elu(self.wide(elu(x))))
        return x.reshape(y.shape) + y


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on interleaved pairs (2i, 2i + 1); x: [..., T, head]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


class Block(nn.Module):
    """Pre-norm attention and exact-GELU feed-forward, each behind a layer scale; no biases but the norms'."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-5), nn.LayerNorm(dim, eps=1e-5)
        self.in_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)
        self.linear1 = nn.Linear(dim, hidden, bias=False)
        self.linear2 = nn.Linear(hidden, dim, bias=False)
        self.scale1 = nn.Parameter(torch.full((dim,), 0.1))
        self.scale2 = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, steps, dim = x.shape
        mixed = self.in_proj(self.norm1(x.float()).to(x.dtype)).view(batch, steps, 3, self.heads, -1)
        q, k, v = mixed.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(dim // self.heads) + mask
        y = (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(batch, steps, dim)
        x = x + self.scale1.to(x.dtype) * self.out_proj(y)
        y = self.linear2(F.gelu(self.linear1(self.norm2(x.float()).to(x.dtype))))
        return x + self.scale2.to(x.dtype) * y


def ring_mask(steps: int, context: int) -> Tensor:
    """[steps, steps] float32, 0 where query (row) sees key (column), very negative elsewhere.

    The published ring takes both 25 Hz steps of a frame before either attends and hides the slot it
    would overwrite next, so with the frame's last step at L both see keys from L - context + 2 on.
    """
    query = torch.arange(steps)[:, None]
    key = torch.arange(steps)[None]
    seen = (key <= query) & (key >= (query | 1) - context + 2)
    return torch.where(seen, 0.0, -1e9)


class Transformer(nn.Module):
    rates: Tensor

    def __init__(self, dim: int, heads: int, layers: int, hidden: int, context: int, max_period: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(dim, heads, hidden) for _ in range(layers))
        self.context = context
        head = dim // heads
        rates = torch.exp(-math.log(max_period) * torch.arange(0, head, 2) / head)
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[1]
        angles = torch.arange(steps)[:, None] * self.rates
        cos, sin, mask = angles.cos().to(x.dtype), angles.sin().to(x.dtype), ring_mask(steps, self.context)
        for layer in self.layers:
            x = layer(x, mask, cos, sin)
        return x
