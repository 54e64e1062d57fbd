"""Causal attention over a ring cache, one step at a time or a chunk at once.

The published ring masks the entry that would be overwritten next, so a cache of ``C`` entries
shows ``C − 1`` keys, the newest included: with keys appended up to position L, positions
``L − C + 2 … L`` are seen. L is the last position appended by the same call: steps that are
appended together (the codec's two 25 Hz steps of a frame) share one window start.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from personaplex.nn.precision import product_dtype
from personaplex.nn.state import State, slot_field


@dataclass
class KVCache(State):
    """Keys (after rotary positions) and values of one layer."""

    keys: Tensor = slot_field(ring_axis=2)  # [B, H, C, D]
    values: Tensor = slot_field(ring_axis=2)  # [B, H, C, D]

    @classmethod
    def empty(cls, slots: int, heads: int, capacity: int, head_dim: int, dtype: torch.dtype, device: str) -> KVCache:
        shape = (slots, heads, capacity, head_dim)
        return cls(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]


@dataclass
class TransformerState(State):
    """Caches of all layers and the number of steps appended so far."""

    layers: list[KVCache]
    position: Tensor = slot_field()  # [B] int64

    @classmethod
    def empty(
        cls, slots: int, layers: int, heads: int, capacity: int, head_dim: int, dtype: torch.dtype, device: str
    ) -> TransformerState:
        caches = [KVCache.empty(slots, heads, capacity, head_dim, dtype, device) for _ in range(layers)]
        return cls(caches, torch.zeros(slots, dtype=torch.int64, device=device))

    def advance(self, steps: int, active: Tensor) -> None:
        """Count ``steps`` more for the slots that move; call once, after all layers."""
        self.position.add_(steps * active)


def ring_positions(last: Tensor, capacity: int, span: int) -> Tensor:
    """Absolute position that each ring entry holds when ``last [B]`` is the newest written.

    → [B, span] int64; negative where nothing was written yet.
    """
    entry = torch.arange(span, device=last.device)
    return last[:, None] - torch.remainder(last[:, None] - entry, capacity)


def append(key: Tensor, value: Tensor, cache: KVCache, position: Tensor, active: Tensor) -> None:
    """Write T steps, at most the ring's length, into it.

    key, value: [B, H, T, D], rotary positions applied. position: [B] int64, steps appended before.
    active: [B] bool; other slots' caches stay as they are.
    """
    offsets = torch.arange(key.shape[2], device=key.device)
    entries = torch.remainder(position[:, None] + offsets, cache.capacity)
    slots = torch.arange(key.shape[0], device=key.device)[:, None]
    for ring, new in ((cache.keys, key), (cache.values, value)):
        rows = ring.transpose(1, 2)
        rows[slots, entries] = torch.where(
            active.view(-1, 1, 1, 1), new.transpose(1, 2).to(ring.dtype), rows[slots, entries]
        )


def attend_step(
    query: Tensor, key: Tensor, value: Tensor, cache: KVCache, position: Tensor, active: Tensor, span: int
) -> Tensor:
    """Append T steps to the ring, then attend over its first ``span`` entries.

    query, key, value: [B, H, T, D], rotary positions applied; T is small and fixed (1 or 2).
    position: [B] int64, steps appended before. active: [B] bool; other slots' caches stay as they are.
    span: how many ring entries may be filled in any slot after this call (a host-side bound).
    → [B, H, T, D] in query's dtype.
    """
    positions = position[:, None] + torch.arange(query.shape[2], device=query.device)
    append(key, value, cache, position, active)
    last = positions[:, -1]
    held = ring_positions(last, cache.capacity, span)[:, None, :]
    seen = (held >= 0) & (held > (last - cache.capacity + 1)[:, None, None]) & (held <= positions[:, :, None])
    keys, values = cache.keys[:, :, :span].to(query.dtype), cache.values[:, :, :span].to(query.dtype)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=seen[:, None])


def attend_chunk(
    query: Tensor, key: Tensor, value: Tensor, cache: KVCache, position: Tensor, active: Tensor, group: int,
    span: int | None = None,
) -> Tensor:  # fmt: skip
    """Attend over the ring and T new steps at once, then append them: equal to T / group calls of ``attend_step``.

    query, key, value: [B, H, T, D]; T a multiple of ``group`` and at most the ring's length.
    span: how many ring entries may be filled in any slot before this call (a host-side bound; all if not given).
    → [B, H, T, D] in query's dtype.
    """
    steps, capacity = query.shape[2], cache.capacity
    assert steps % group == 0 and steps <= capacity, (steps, group, capacity)
    offsets = torch.arange(steps, device=query.device)
    positions = position[:, None] + offsets
    span = capacity if span is None else min(span, capacity)
    held = torch.cat([ring_positions(position - 1, capacity, span), positions], dim=1)[:, None, :]
    last_of_group = position[:, None] + offsets.div(group, rounding_mode="floor") * group + group - 1
    seen = (held >= 0) & (held > (last_of_group - capacity + 1)[:, :, None]) & (held <= positions[:, :, None])
    dtype = product_dtype(query)
    keys = torch.cat([cache.keys[:, :, :span].to(dtype), key.to(dtype)], dim=2)
    values = torch.cat([cache.values[:, :, :span].to(dtype), value.to(dtype)], dim=2)
    attended = F.scaled_dot_product_attention(query.to(dtype), keys, values, attn_mask=seen[:, None]).to(query.dtype)
    append(key, value, cache, position, active)
    return attended
