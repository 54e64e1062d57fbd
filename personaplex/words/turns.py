"""Turns in a stream of sound, found by loudness as it comes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from personaplex.audio.activity import ABOVE_NOISE_DB, HOP_SEC, QUIET_DB

ENDS_AFTER_SEC = 0.7  # of silence
LONGEST_SEC = 25.0  # then a turn is cut
LEAST_SPEECH_SEC = 0.12
LEAD_SEC = 0.3  # of sound before the first loud block
ROOM_SEC = 5.0  # whose quiet blocks are the room's noise


@dataclass(frozen=True)
class Turn:
    """A stretch that holds speech."""

    start_sec: float  # in the stream
    pcm: np.ndarray  # [N] float32


class TurnFinder:
    """Cuts a stream into turns."""

    def __init__(self, sample_rate_hz: int) -> None:
        self._rate_hz = sample_rate_hz
        self._hop = round(HOP_SEC * sample_rate_hz)
        self._rest = np.zeros(0, np.float32)
        blocks = round(ROOM_SEC / HOP_SEC)
        # A room is quiet until it is known: a stream may begin with speech.
        self._levels_db: deque[float] = deque([QUIET_DB] * (blocks // 10 + 1), maxlen=blocks)
        self._kept: list[np.ndarray] = []
        self._blocks = 0  # of the stream, so far
        self._loud = self._quiet = 0  # blocks of the turn: loud ones, and quiet ones since the last of them

    def push(self, pcm: np.ndarray) -> Sequence[Turn]:
        """pcm: [N] float32, any N → the turns that ended in it."""
        joined = np.concatenate([self._rest, pcm])
        whole = len(joined) // self._hop
        self._rest = joined[whole * self._hop :]
        found = (self._take(block) for block in joined[: whole * self._hop].reshape(whole, self._hop))
        return [turn for turn in found if turn is not None]

    def flush(self) -> Sequence[Turn]:
        """The turn that is not over yet, if there is one."""
        turn = self._cut()
        return [] if turn is None else [turn]

    def _take(self, block: np.ndarray) -> Turn | None:
        level_db = 10 * np.log10(float(np.var(block, dtype=np.float64)) + 1e-12)
        self._levels_db.append(level_db)
        self._blocks += 1
        self._kept.append(block)
        if level_db >= max(QUIET_DB, float(np.percentile(self._levels_db, 10)) + ABOVE_NOISE_DB):
            self._loud, self._quiet = self._loud + 1, 0
        elif self._loud:
            self._quiet += 1
        if not self._loud:
            del self._kept[: -round(LEAD_SEC / HOP_SEC)]
            return None
        is_over = self._quiet * HOP_SEC >= ENDS_AFTER_SEC or len(self._kept) * HOP_SEC >= LONGEST_SEC
        return self._cut() if is_over else None

    def _cut(self) -> Turn | None:
        kept, loud = self._kept, self._loud
        self._kept, self._loud, self._quiet = [], 0, 0
        if loud * HOP_SEC < LEAST_SPEECH_SEC:
            return None
        return Turn((self._blocks - len(kept)) * HOP_SEC, np.concatenate(kept))
