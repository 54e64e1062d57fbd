"""G.711, the telephone's 8 bits: µ-law and A-law samples ↔ float32, by table (ITU-T G.711, tables 1 and 2)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from personaplex.audio.frames import INT16_SCALE, to_int16

PHONE_RATE_HZ = 8_000
LAWS = ("mu", "a")
_MU_BIAS = 132
_A_INVERTED_BITS = 0x55


def decode(data: bytes, law: str) -> np.ndarray:
    """Coded samples, one a byte → [N] float32 in -1..1; ``law``: "mu" or "a"."""
    return _levels(law)[np.frombuffer(data, np.uint8)].astype(np.float32) / INT16_SCALE


def encode(pcm: np.ndarray, law: str) -> bytes:
    """[N] float in [-1, 1] → N coded samples, each the nearest level of the law."""
    return _codes(law)[to_int16(pcm).astype(np.int32) + INT16_SCALE].tobytes()


@lru_cache(maxsize=len(LAWS))
def _levels(law: str) -> np.ndarray:
    """[256] int32: the level of each code on the scale of int16."""
    codes = np.arange(256)
    if law == "mu":
        bits = 255 - codes
        exponent, mantissa = bits >> 4 & 7, bits & 15
        level = (((mantissa << 3) + _MU_BIAS) << exponent) - _MU_BIAS
        return np.where(bits & 128, -level, level).astype(np.int32)
    assert law == "a", f"the law is {law!r}; mu and a are known"
    bits = codes ^ _A_INVERTED_BITS
    exponent, mantissa = bits >> 4 & 7, bits & 15
    level = np.where(exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 264) << np.maximum(exponent - 1, 0))
    return np.where(bits & 128, level, -level).astype(np.int32)


@lru_cache(maxsize=len(LAWS))
def _codes(law: str) -> np.ndarray:
    """[65536] uint8: the code of each int16 value, -32768 first."""
    levels = _levels(law)
    order = np.argsort(levels, kind="stable")
    edges = (levels[order][1:] + levels[order][:-1]) / 2
    return order[np.searchsorted(edges, np.arange(-INT16_SCALE, INT16_SCALE), side="right")].astype(np.uint8)
