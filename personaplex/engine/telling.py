"""Text told in the middle of conversations: its limits, when the cache keeps it, and when it is met as the prompt is.

The language model reads the last told column in the call after the telling: text is kept once that call is over.
What is due when is known on the host; the state on the device holds the same (``lag``, ``held``, ``fresh``), so that a
snapshot does, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from personaplex.config import MOST_TOLD_TOKENS
from personaplex.engine.columns import FrameState
from personaplex.errors import InputError
from personaplex.nn.attention import KeepingState
from personaplex.nn.keeping import hold, keep_newest
from personaplex.nn.state import MAX_POSITION, row_view

LEAST_LIVE_FRAMES = 25
"""Of the cache, left for the conversation beside what is kept: 2 s, less than that holds no question."""

KEPT_NAME, HELD_NAME, LAG_NAME = "temporal.kept", "temporal.held", "temporal.lag"
"""Of a snapshot's tensors: what the language model's cache keeps for good; see ``KeepingState``."""

TOLD_NAME, FRESH_NAME = "frames.told", "frames.fresh"
"""Of a snapshot's tensors: what was told in mid-conversation; see ``FrameState``."""


class ToldText:
    """The told text of all slots of an engine."""

    def __init__(self, temporal: KeepingState, frames: FrameState, max_period: float):
        self._temporal, self._frames, self._max_period = temporal, frames, max_period
        self._fresh = [0] * temporal.slots
        # Of each slot, the texts that are kept and not yet held: (kept entries up to its end, its lag), oldest first.
        self._waiting: list[list[tuple[int, int]]] = [[] for _ in range(temporal.slots)]

    def counts(self, row: int) -> tuple[int, int]:
        """Frames of text that a slot was told so far, and frames that it keeps, or will after its next call."""
        kept = int(self._temporal.kept[row])
        return int(self._frames.told[row]), kept + self._fresh[row] if kept else 0

    def check_fits(self, row: int, count: int) -> None:
        """Raise InputError for ``count`` frames more than a slot may be told, or can keep."""
        told, kept = self.counts(row)
        if not 1 <= count <= MOST_TOLD_TOKENS - told:
            raise InputError(
                f"{count} frames of text cannot be told after {told}; {MOST_TOLD_TOKENS} are allowed in a conversation"
            )
        most = self._temporal.capacity - LEAST_LIVE_FRAMES
        if kept and kept + count > most:
            raise InputError(
                f"{count} frames of text cannot be kept beside {kept} in a context of {self._temporal.capacity}; "
                f"{max(most - kept, 0)} more at most can"
            )

    def add(self, row: int, count: int) -> None:
        """Note that the newest ``count`` frames of a slot were told."""
        self._frames.told[row] += count
        self._frames.fresh[row] = count
        # A slot that keeps its prompt keeps what it is told, too.
        self._fresh[row] = count if int(self._temporal.kept[row]) else 0

    def before_frame(self, row: int, position: int) -> None:
        """Hold what has fallen as far behind a query at ``position`` as the prompt."""
        while self._waiting[row] and position > self._last_position(row):
            entries, lag = self._waiting[row].pop(0)
            hold(row_view(self._temporal, row), entries, lag, self._max_period)

    def after_frame(self, row: int) -> None:
        """Keep what was told before the call that is over now."""
        count, self._fresh[row] = self._fresh[row], 0
        if count:
            told_before = int(self._frames.told[row]) - count
            lag = keep_newest(row_view(self._temporal, row), count, told_before)
            self._waiting[row].append((int(self._temporal.kept[row]), lag))

    def unchanged_for(self, row: int, position: int) -> int:
        """For how many frames from ``position`` on, at least 1, what is held stays the same."""
        return self._last_position(row) - position + 1 if self._waiting[row] else MAX_POSITION

    def _last_position(self, row: int) -> int:
        """Of a query that meets the oldest waiting text at its true distance."""
        return self._temporal.capacity - 2 + self._waiting[row][0][1]

    def forget(self, row: int) -> None:
        self._fresh[row] = 0
        self._waiting[row].clear()

    def read(self, row: int, tensors: dict[str, Tensor]) -> None:
        """Take over what a snapshot says."""
        kept, held, lags = int(tensors[KEPT_NAME]), int(tensors[HELD_NAME]), _lags(tensors)
        self._fresh[row] = int(tensors[FRESH_NAME]) if kept else 0
        ends = [index + 1 for index, lag in enumerate(lags) if lags[index + 1 : index + 2] != [lag]]
        groups = [(kept - len(lags) + end, lags[end - 1]) for end in ends]
        self._waiting[row] = [(entries, lag) for entries, lag in groups if entries > held]


def _lags(tensors: dict[str, Tensor]) -> list[int]:
    """The lags of the kept entries that were told."""
    count = int(tensors[TOLD_NAME]) - int(tensors[FRESH_NAME])
    return tensors[LAG_NAME][: count if int(tensors[KEPT_NAME]) else 0].tolist()


def add_later_tensors(tensors: dict[str, Tensor]) -> None:
    """Give a snapshot of an earlier version the tensors that it lacks, with their neutral values.

    0.1.0 kept nothing; before text could be told all that was kept was a prompt.
    """
    none = torch.zeros((), dtype=torch.int64)
    kept = tensors.setdefault(KEPT_NAME, none.clone())
    tensors.setdefault(HELD_NAME, kept.clone())
    tensors.setdefault(LAG_NAME, none.repeat(MOST_TOLD_TOKENS))
    for name in (TOLD_NAME, FRESH_NAME):
        tensors.setdefault(name, none.clone())


def check_kept(tensors: dict[str, Tensor], context: int) -> None:
    """Raise InputError for a snapshot that keeps, or was told, what cannot be: for snapshots from files."""
    kept, position = int(tensors[KEPT_NAME]), int(tensors["temporal.position"])
    if not 0 <= kept <= max(min(position, context - LEAST_LIVE_FRAMES), 0):
        raise InputError(f"the snapshot keeps {kept} of {position} frames in a context of {context}: make it again")
    told, fresh, held = (int(tensors[name]) for name in (TOLD_NAME, FRESH_NAME, HELD_NAME))
    room = min(position, context - LEAST_LIVE_FRAMES) - kept if kept else fresh
    if not 0 <= fresh <= told <= MOST_TOLD_TOKENS or fresh > room:
        raise InputError(
            f"the snapshot was told {told} frames of text, {fresh} of them last, and keeps {kept} of {position} in a "
            f"context of {context}: make it again"
        )
    lags = _lags(tensors)
    if not kept - len(lags) <= held <= kept or not 0 <= min(lags, default=0) <= max(lags, default=0) <= position:
        raise InputError(f"the snapshot keeps {kept} frames, {len(lags)} of them told, and holds {held}: make it again")
