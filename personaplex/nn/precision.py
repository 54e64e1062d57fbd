"""The float type that products of many rows are computed in."""

from __future__ import annotations

import platform
from functools import cache

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """x's own type, but float32 for bfloat16 on a processor without instructions for it.

    Such a processor takes up to fifty times as long for bfloat16 as for float32, and widening is exact.
    """
    return torch.float32 if x.dtype is torch.bfloat16 and not x.is_cuda and not multiplies_bfloat16() else x.dtype


@cache
def multiplies_bfloat16() -> bool:
    """Whether this machine's processor has instructions for bfloat16 products (AMX, AVX512-BF16, Arm's BF16)."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return multiplies_tiles() or _has("_is_avx512_bf16_supported")
    # PyTorch for the Mac is built without the library that would know.
    probe = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return probe is not None and bool(probe())


@cache
def multiplies_tiles() -> bool:
    """Whether this machine's processor has AMX, several times as fast as other bfloat16 instructions."""
    return _has("_is_amx_tile_supported")


def _has(check: str) -> bool:
    return bool(getattr(torch.cpu, check, lambda: False)())
