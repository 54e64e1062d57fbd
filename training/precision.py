"""The number format to train in, chosen by timing."""

from __future__ import annotations

import time

import torch

_SMALL_ADVANTAGE = 0.7
_TRIALS = 10


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Products in this format; float32 leaves all as it is."""
    is_half = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if is_half else torch.bfloat16, enabled=is_half)


def fastest_dtype(
    device: torch.device, among: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
) -> torch.dtype:
    """The format among these in which this machine computes a step fastest.

    A GPU takes bfloat16. On a processor bfloat16 products are five times as fast with AMX, twice with AVX512-BF16
    and half as fast without either; float16 products are as fast as float32 with AVX512-FP16. Half of a step moves
    memory, so the small formats may be a little slower.
    """
    if device.type != "cpu":
        return torch.bfloat16
    seconds = {}
    for dtype in among:
        a, b = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        runs = []
        for _ in range(_TRIALS):
            began = time.perf_counter()
            a @ b
            runs.append(time.perf_counter() - began)
        seconds[dtype] = min(runs) * (1.0 if dtype == torch.float32 else _SMALL_ADVANTAGE)
    return min(seconds, key=seconds.__getitem__)
