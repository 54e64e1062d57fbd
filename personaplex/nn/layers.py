"""Small layers both transformers share: RMS norm, rotary positions, gated feed-forward."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personaplex.nn.linear import Linear
from personaplex.nn.weight_entry import WeightEntry, empty_parameter, linear_entry

RMS_NORM_EPS = 1e-8


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32 (Zhang & Sennrich 2019): ``x · alpha · rsqrt(mean(x²) + 1e-8)``."""

    def __init__(self, dim: int):
        super().__init__()
        self.alpha = empty_parameter(1, 1, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., dim] any float dtype → the same."""
        wide = x.float()
        scale = torch.rsqrt(RMS_NORM_EPS + wide.square().mean(dim=-1, keepdim=True))
        return (wide * (self.alpha.float().view(-1) * scale)).to(x.dtype)


def rope_frequencies(head_dim: int, max_period: float, device: torch.device | str = "cpu") -> Tensor:
    """Angle a position of each pair, [head_dim / 2] float32."""
    index = torch.arange(head_dim // 2, device=device, dtype=torch.float32)
    return torch.exp(index * (-math.log(max_period) * 2 / head_dim))


def rope_angles(positions: Tensor, head_dim: int, max_period: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of rotary positions (Su et al. 2021).

    positions: [B, T] int64, absolute → two float32 tensors [B, 1, T, head_dim / 2].
    """
    frequencies = rope_frequencies(head_dim, max_period, positions.device)
    angles = positions.to(torch.float32)[:, None, :, None] * frequencies
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs (2i, 2i + 1) of x [B, H, T, D], computed in float32, returned in x's dtype."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).to(x.dtype)


class GatedFeedForward(nn.Module):
    """SiLU-gated feed-forward (Shazeer 2020): ``W_out(silu(a) · b)`` with ``a, b = split(W_in x)``."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.linear_in = Linear(dim, 2 * hidden)
        self.linear_out = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., dim] → [..., dim]."""
        gate, value = self.linear_in(x).chunk(2, dim=-1)
        if gate.is_cuda:  # where the model's authors compile this, and it is rounded once
            return self.linear_out((F.silu(gate.float()) * value.float()).to(gate.dtype))
        return self.linear_out(F.silu(gate) * value)

    def checkpoint_entries(self, prefix: str) -> list[WeightEntry]:
        return [
            linear_entry(f"{prefix}linear_in.weight", self.linear_in),
            linear_entry(f"{prefix}linear_out.weight", self.linear_out),
        ]
