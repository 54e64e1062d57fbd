"""Tensors of a checkpoint file and the parts of a model that they feed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from personaplex.nn.linear import Linear


@dataclass(frozen=True)
class WeightEntry:
    """One tensor of a checkpoint file and its destination.

    Models list these; a file that lacks one, or has others, is refused.
    """

    key: str
    shape: tuple[int, ...]
    linears: tuple[tuple[Linear, slice], ...] = ()
    """Layers fed by rows of this tensor: stacked depth weights feed one layer a step."""
    parameter: tuple[nn.Module, str] | None = None
    """The module and the attribute that takes a plain tensor."""
    used: bool = True
    """False: must be in the file, with that shape, but is not read."""


def empty_parameter(*shape: int) -> nn.Parameter:
    """A parameter without memory; weights arrive from a checkpoint."""
    return nn.Parameter(torch.empty(*shape, device="meta"), requires_grad=False)


def plain_entry(key: str, module: nn.Module, name: str) -> WeightEntry:
    """A tensor that is kept in its stored precision: embeddings, norms, biases, the codec."""
    return WeightEntry(key, tuple(getattr(module, name).shape), parameter=(module, name))


def linear_entry(key: str, linear: Linear) -> WeightEntry:
    """A weight matrix [out, in] that one linear layer reads whole."""
    rows = linear.out_features
    return WeightEntry(key, (rows, linear.in_features), linears=((linear, slice(0, rows)),))
