"""What a cache keeps of the middle of a conversation: text told to it, beside the prompt that it began with.

The layout and the distances at which kept keys are met are defined in ``attention.py``. Everything here happens between
two steps, on the host: a step itself reads ``kept`` and ``held`` and no more.
"""

from __future__ import annotations

import torch

from personaplex.nn.attention import KeepingState
from personaplex.nn.cache_rows import loaded, stored
from personaplex.nn.layers import apply_rope, rope_angles


def keep_newest(state: KeepingState, count: int, told_before: int) -> int:
    """Keep the newest ``count`` steps of a state of one slot, behind the entries that it keeps already.

    They move there; the newest others move to where a ring behind them has them, and what no longer fits is forgotten.
    told_before: how many of the entries kept already are not the prompt's. → the new entries' lag: t_j − j.
    """
    kept, position, capacity = int(state.kept), int(state.position), state.capacity
    steps = position - kept  # given to the ring so far
    stay = min(steps - count, capacity - kept - count)
    assert 0 < count <= capacity - kept and count <= steps and stay > 0, (kept, position, capacity, count)
    device = state.kept.device
    others = torch.arange(steps - count - stay, steps - count, device=device)
    told = torch.arange(steps - count, steps, device=device)
    from_entries = kept + torch.remainder(torch.cat([told, others]), capacity - kept)
    to_ring = kept + count + torch.remainder(others, capacity - kept - count)
    to_entries = torch.cat([kept + torch.arange(count, device=device), to_ring])
    for cache in state.layers:
        for ring in (cache.keys, cache.values):
            ring[:, :, to_entries] = ring[:, :, from_entries]
    lag = steps - count
    state.lag[:, told_before : told_before + count] = lag
    state.kept.fill_(kept + count)
    return lag


def hold(state: KeepingState, entries: int, lag: int, max_period: float) -> None:
    """From now on the first ``entries`` kept ones of a state of one slot are met from the window's end.

    The keys of those that join them are turned from where they were computed to where the prompt's are, ``lag``
    positions before. To be done when a query's position passes C − 2 + lag: the distances are the same there.
    """
    first = int(state.held)
    back = torch.full((1, 1), -lag, dtype=torch.int64, device=state.held.device)
    for cache in state.layers:
        rows = cache.keys[:, :, first:entries]
        keys = loaded(rows, torch.float32 if rows.dtype is torch.int8 else rows.dtype)
        rows.copy_(stored(apply_rope(keys, *rope_angles(back, keys.shape[-1], max_period)), rows.dtype))
    state.held.fill_(entries)
