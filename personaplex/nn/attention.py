"""Causal attention over a ring cache, one step at a time or a chunk at once.

The published ring masks the entry that would be overwritten next, so a cache of ``C`` entries
shows ``C − 1`` keys, the newest included: with keys appended up to position L, positions
``L − C + 2 … L`` are seen. L is the last position appended by the same call: steps that are
appended together (the codec's two 25 Hz steps of a frame) share one window start.

**Kept entries.** A cache may keep its first K entries for good, a conversation's prompt: they are never overwritten,
and the other ``R = C − K`` are a ring for the newest of the steps that follow. ``K = 0`` is the published ring. A full
cache again hides the ring's entry that would be overwritten next, so ``C − 1`` keys are seen with any K, and until the
cache is full K changes nothing. After that the j-th kept key is met as if ``C − 2`` steps had gone by since the cache's
beginning: its distance to a query at position L is ``min(L, C − 2) − j``. To the query the window then looks as it did
just before it was passed, the prompt followed by the newest steps, and no distance is greater than the ``C − 2`` that
the published ring knows. (Attention sinks, Xiao et al. 2023, keep a few entries in the same way; there the positions
of all keys are counted within the cache, which is the same thing.)

Steps of the middle of a conversation can be kept, too (``keeping.py``). They become the entries behind those kept
before, and the ring begins behind them. Key j, computed at position t_j, is met at its true distance L − t_j until that
is the prompt's, and at the prompt's from then on: ``min(L − t_j, C − 2 − j)``. So of the K kept entries the first
``held`` are met from the window's end, and the others, told less than a window ago, as those of the ring are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from personaplex.config import MOST_TOLD_TOKENS
from personaplex.nn.cache_rows import loaded, row_width, stored
from personaplex.nn.precision import product_dtype
from personaplex.nn.state import State, slot_field


@dataclass
class KVCache(State):
    """Keys (after rotary positions) and values of one layer: rows of ``cache_rows``, W numbers each."""

    keys: Tensor = slot_field(ring_axis=2)  # [B, H, C, W]
    values: Tensor = slot_field(ring_axis=2)  # [B, H, C, W]

    @classmethod
    def empty(cls, slots: int, heads: int, capacity: int, head_dim: int, dtype: torch.dtype, device: str) -> KVCache:
        shape = (slots, heads, capacity, row_width(head_dim, dtype))
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

    @property
    def capacity(self) -> int:
        return self.layers[0].capacity

    def advance(self, steps: int, active: Tensor) -> None:
        """Count ``steps`` more for the slots that move; call once, after all layers."""
        self.position.add_(steps * active)


@dataclass
class KeepingState(TransformerState):
    """A TransformerState whose caches keep their first entries."""

    kept: Tensor = slot_field()  # [B] int64: 0 … min(position, capacity − 2)
    held: Tensor = slot_field()  # [B] int64: the first of them, which are met from the window's end
    lag: Tensor = slot_field()  # [B, MOST_TOLD_TOKENS] int64: t_j − j of the kept entries behind the prompt's

    @classmethod
    def empty(
        cls, slots: int, layers: int, heads: int, capacity: int, head_dim: int, dtype: torch.dtype, device: str
    ) -> KeepingState:
        plain = TransformerState.empty(slots, layers, heads, capacity, head_dim, dtype, device)
        none = torch.zeros(slots, dtype=torch.int64, device=device)
        return cls(plain.layers, plain.position, none, none.clone(), none[:, None].repeat(1, MOST_TOLD_TOKENS))

    def held_position(self, positions: Tensor) -> Tensor:
        """Where a query at ``positions [B, T]`` stands for the held entries: int64, at the window's end at most."""
        return positions.clamp(max=self.capacity - 2)


@dataclass(frozen=True)
class Kept:
    """What a call has to know of a cache's kept entries."""

    entries: Tensor  # [B] int64: how many
    held: Tensor  # [B] int64: how many of them ``query`` meets
    query: Tensor | None  # [B, H, T, D], rotated for ``held_position``; None where no slot has passed the window


def _ring(cache: KVCache, position: Tensor, kept: Kept | None) -> tuple[Tensor, Tensor, Tensor]:
    """A ring's first entry, its length, and how many steps it was given before ``position``: [B, 1] int64 each."""
    first = torch.zeros_like(position)[:, None] if kept is None else kept.entries[:, None]
    return first, cache.capacity - first, position[:, None] - first


def append(
    key: Tensor, value: Tensor, cache: KVCache, position: Tensor, active: Tensor, kept: Kept | None = None
) -> None:
    """Write T steps, at most the ring's length, into it.

    key, value: [B, H, T, D], rotary positions applied. position: [B] int64, steps appended before.
    active: [B] bool; other slots' caches stay as they are.
    """
    first, length, given = _ring(cache, position, kept)
    entries = first + torch.remainder(given + torch.arange(key.shape[2], device=key.device), length)
    slots = torch.arange(key.shape[0], device=key.device)[:, None]
    for ring, new in ((cache.keys, key), (cache.values, value)):
        rows = ring.transpose(1, 2)
        rows[slots, entries] = torch.where(
            active.view(-1, 1, 1, 1), stored(new, ring.dtype).transpose(1, 2), rows[slots, entries]
        )


def attend_step(
    query: Tensor, key: Tensor, value: Tensor, cache: KVCache, position: Tensor, active: Tensor, span: int,
    kept: Kept | None = None,
) -> Tensor:  # fmt: skip
    """Append T steps to the ring, then attend over the first ``span`` entries of the cache.

    query, key, value: [B, H, T, D], rotary positions applied; T is small and fixed (1 or 2).
    position: [B] int64, steps appended before. active: [B] bool; other slots' caches stay as they are.
    span: how many entries may be filled in any slot after this call (a host-side bound).
    → [B, H, T, D] in query's dtype.
    """
    steps = query.shape[2]
    append(key, value, cache, position, active, kept)
    seen = _seen(cache, position, kept, span, steps, steps, before=False)
    keys, values = (loaded(ring[:, :, :span], query.dtype) for ring in (cache.keys, cache.values))
    mask = _mask(seen[:, None], query, keys, kept)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)


def attend_chunk(
    query: Tensor, key: Tensor, value: Tensor, cache: KVCache, position: Tensor, active: Tensor, group: int,
    span: int | None = None, kept: Kept | None = None,
) -> Tensor:  # fmt: skip
    """Attend over the cache and T new steps at once, then append them: equal to T / group calls of ``attend_step``.

    query, key, value: [B, H, T, D]; T a multiple of ``group`` and at most the ring's length.
    span: how many entries may be filled in any slot before this call (a host-side bound; all if not given).
    → [B, H, T, D] in query's dtype.
    """
    steps, capacity = query.shape[2], cache.capacity
    assert steps % group == 0 and steps <= capacity, (steps, group, capacity)
    span = capacity if span is None else min(span, capacity)
    seen = _seen(cache, position, kept, span, steps, group, before=True)
    dtype = product_dtype(query)
    keys = torch.cat([loaded(cache.keys[:, :, :span], dtype), _as_kept(key, cache).to(dtype)], dim=2)
    values = torch.cat([loaded(cache.values[:, :, :span], dtype), _as_kept(value, cache).to(dtype)], dim=2)
    mask = _mask(seen[:, None], query.to(dtype), keys, kept)
    attended = F.scaled_dot_product_attention(query.to(dtype), keys, values, attn_mask=mask).to(query.dtype)
    append(key, value, cache, position, active, kept)
    return attended


def _as_kept(new: Tensor, cache: KVCache) -> Tensor:
    """New keys or values as a step that comes later reads them, if they are quantised."""
    return loaded(stored(new, torch.int8), new.dtype) if cache.keys.dtype is torch.int8 else new


def _seen(
    cache: KVCache, position: Tensor, kept: Kept | None, span: int, steps: int, group: int, *, before: bool
) -> Tensor:
    """Which of the first ``span`` entries each of T = ``steps`` queries meets, [B, T, span] bool.

    before: entries are those before the steps are appended, and the steps themselves follow: [B, T, span + T].
    """
    first, length, given = _ring(cache, position, kept)
    offsets = torch.arange(steps, device=position.device)
    entry = torch.arange(span, device=position.device)
    newest = given - 1 if before else given + steps - 1
    # The number of the step that each entry of the ring holds; negative where there is none yet.
    held = newest - torch.remainder(newest - (entry - first), length)
    own = given + offsets
    held = (torch.cat([held, own], dim=1) if before else held)[:, None]
    stays = torch.arange(held.shape[2], device=position.device) < first[:, :, None]
    last_of_group = given + offsets.div(group, rounding_mode="floor") * group + group - 1
    in_ring = (held >= 0) & (held > (last_of_group - length + 1)[:, :, None]) & (held <= own[:, :, None])
    return stays | in_ring


def _mask(seen: Tensor, query: Tensor, keys: Tensor, kept: Kept | None) -> Tensor:
    """The attention's mask: ``seen [B, 1, T, S]`` itself, or what it adds to the scores where held entries need that.

    They are met by another query. What its scores differ by is added; it is exactly zero until the window is passed.
    """
    if kept is None or kept.query is None:
        return seen
    difference = (kept.query.to(query.dtype) - query) @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
    held = torch.arange(keys.shape[2], device=keys.device) < kept.held[:, None, None, None]
    return torch.where(held, difference, 0.0).masked_fill(~seen, -torch.inf)
