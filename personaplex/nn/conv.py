"""Streaming causal convolutions: block by block they compute the same as over the whole signal.

Weights keep the published names, ``….conv.conv.weight`` and ``….convtr.convtr.weight``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personaplex.nn.state import State, keep_inactive, slot_field
from personaplex.nn.weight_entry import WeightEntry, empty_parameter, plain_entry


@dataclass
class ConvState(State):
    """The last input samples, which the next block's first outputs depend on."""

    previous: Tensor = slot_field()  # [B, channels_in, padding]
    started: Tensor = slot_field()  # [B] bool


@dataclass
class ConvTransposeState(State):
    """The overlap of the last block into the next one, without bias."""

    overlap: Tensor = slot_field()  # [B, channels_out, kernel − stride]


class StreamingConv1d(nn.Module):
    """Causal convolution, padded on the left by ``(kernel − 1) · dilation + 1 − stride`` at a stream's start.

    ``repeat_first``: the padding repeats the stream's first value instead of being zero.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, bias: bool = True,
        repeat_first: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.weight = empty_parameter(channels_out, channels_in, kernel)
        self.bias = empty_parameter(channels_out) if bias else None
        self.stride, self.padding, self.repeat_first = stride, kernel - stride, repeat_first

    def initial_state(self, slots: int, device: str) -> ConvState:
        previous = torch.zeros(slots, self.weight.shape[1], self.padding, device=device)
        return ConvState(previous, torch.zeros(slots, dtype=torch.bool, device=device))

    def forward(self, x: Tensor, state: ConvState, active: Tensor) -> Tensor:
        """x: [B, channels_in, T] with T a multiple of the stride → [B, channels_out, T / stride]."""
        previous = state.previous
        if self.repeat_first:
            previous = keep_inactive(previous, x[:, :, :1].expand_as(previous), state.started)
        padded = torch.cat([previous, x], dim=2) if self.padding else x
        out = F.conv1d(padded, self.weight, self.bias, stride=self.stride)
        if self.padding:
            state.previous.copy_(keep_inactive(padded[:, :, -self.padding :], state.previous, active))
            state.started.logical_or_(active)
        return out

    def checkpoint_entries(self, prefix: str) -> list[WeightEntry]:
        names = ["weight"] + (["bias"] if self.bias is not None else [])
        return [plain_entry(f"{prefix}{name}", self, name) for name in names]


class StreamingConvTranspose1d(nn.Module):
    """Causal transposed convolution; the part beyond a block is added to the next one."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, *, stride: int, groups: int = 1, bias: bool = True
    ):
        super().__init__()
        self.weight = empty_parameter(channels_in, channels_out // groups, kernel)
        self.bias = empty_parameter(channels_out) if bias else None
        self.channels_out, self.stride, self.groups, self.overlap = channels_out, stride, groups, kernel - stride

    def initial_state(self, slots: int, device: str) -> ConvTransposeState:
        return ConvTransposeState(torch.zeros(slots, self.channels_out, self.overlap, device=device))

    def forward(self, x: Tensor, state: ConvTransposeState, active: Tensor) -> Tensor:
        """x: [B, channels_in, T] → [B, channels_out, T · stride]."""
        full = F.conv_transpose1d(x, self.weight, None, stride=self.stride, groups=self.groups)
        full[:, :, : self.overlap] += state.overlap
        split = x.shape[2] * self.stride
        state.overlap.copy_(keep_inactive(full[:, :, split:], state.overlap, active))
        out = full[:, :, :split]
        return out if self.bias is None else out + self.bias[:, None]

    def checkpoint_entries(self, prefix: str) -> list[WeightEntry]:
        names = ["weight"] + (["bias"] if self.bias is not None else [])
        return [plain_entry(f"{prefix}{name}", self, name) for name in names]
