"""Rows of a key/value cache: as floats, or as int8 with a scale each.

A row is what one head keeps of one step, a key or a value. As int8 its numbers are ``round(x / scale)`` with
``scale = max |x| / 127``, symmetric quantisation; the scale follows them in the same row, as the four bytes of a
float32. So an entry stays one row, whoever copies it: the ring, snapshots, what a cache keeps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from personaplex.config import CACHE_SCALE_BYTES
from personaplex.nn.packing import INT8_MAX


def row_width(head_dim: int, dtype: torch.dtype) -> int:
    """Numbers of a row for a head of ``head_dim``."""
    return head_dim + CACHE_SCALE_BYTES if dtype is torch.int8 else head_dim


def stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [..., D] → rows [..., ``row_width``] of a cache of that type; a row with a NaN is all NaN, as int8."""
    if dtype is not torch.int8:
        return x.to(dtype)
    x = x.float()
    scale = x.abs().amax(dim=-1, keepdim=True) / INT8_MAX
    whole = (x / torch.where(scale > 0, scale, 1.0)).round().clamp(-INT8_MAX, INT8_MAX)
    return torch.cat([whole.nan_to_num().to(torch.int8), scale.view(torch.int8)], dim=-1)


def loaded(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a cache → [..., D] of ``dtype``, as attention reads them."""
    if rows.dtype is not torch.int8:
        return rows.to(dtype)
    scale = rows[..., -CACHE_SCALE_BYTES:].contiguous().view(torch.float32)
    return (rows[..., :-CACHE_SCALE_BYTES].float() * scale).to(dtype)
