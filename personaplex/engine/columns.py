"""Token columns: delays, forced tokens and what a call returns. Integers only.

Known tokens of stream *k* for frame *t* are written to column *t + delay[k]*; the model reads
column *t − 1* and completes column *t*; frame *t − 1* is then whole and is returned. Columns
*p ≤ delay[k]* always hold the stream's initial token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from personaplex.config import AGENT, NUM_AGENT_CODEBOOKS, TEXT, USER, LMConfig
from personaplex.errors import InputError
from personaplex.nn.state import State, keep_inactive, slot_field

UNKNOWN = -2
"""Marks a token that the model has to predict."""


@dataclass
class FrameState(State):
    """A ring of the newest columns, the number of calls made, and what was told in the middle of them."""

    columns: Tensor = slot_field(reset=UNKNOWN)  # [B, 17, max_delay + 3] int64
    position: Tensor = slot_field()  # [B] int64: the next call's t
    told: Tensor = slot_field()  # [B] int64: frames of text told in mid-conversation, so far
    fresh: Tensor = slot_field()  # [B] int64: those of them that end with frame t − 1

    @classmethod
    def empty(cls, slots: int, config: LMConfig, device: str) -> FrameState:
        shape = (slots, config.num_streams, config.ring_columns)
        columns = torch.full(shape, UNKNOWN, dtype=torch.int64, device=device)
        return cls(columns, *(torch.zeros(slots, dtype=torch.int64, device=device) for _ in range(3)))


class FrameClock:
    """The rules of the columns, for one model."""

    def __init__(self, config: LMConfig, device: str = "cpu"):
        self.config = config
        self.delays = torch.tensor(config.delays, dtype=torch.int64, device=device)
        initial = [config.initial_text_id] + [config.initial_audio_id] * config.n_q
        self.initial = torch.tensor(initial, dtype=torch.int64, device=device)
        self.length = config.ring_columns

    def _read(self, state: FrameState, column: Tensor) -> Tensor:
        """Column numbers [B] → tokens [B, 17], with the initial tokens where they belong."""
        index = torch.remainder(column, self.length)[:, None, None].expand(-1, state.columns.shape[1], 1)
        tokens = state.columns.gather(2, index)[:, :, 0]
        return torch.where(column[:, None] <= self.delays, self.initial, tokens)

    def _write(self, state: FrameState, columns: Tensor, tokens: Tensor, active: Tensor) -> None:
        """tokens [B, 17] to columns [B, 17], for the slots that move."""
        index = torch.remainder(columns, self.length)[:, :, None]
        kept = keep_inactive(tokens[:, :, None], state.columns.gather(2, index), active)
        state.columns.scatter_(2, index, kept)

    def begin(self, state: FrameState, known: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Start call t: known [B, 17] int64, UNKNOWN where the model decides.

        → the model's input, column t − 1 [B, 17], and what is known of column t [B, 17].
        """
        self._write(state, state.position[:, None] + self.delays, known, active)
        return self._read(state, state.position - 1), self._read(state, state.position)

    def hear(self, state: FrameState, user_codes: Tensor, active: Tensor) -> Tensor:
        """Note what was heard in call t, between ``begin`` and ``finish``: user_codes [B, 8] int64.

        Column t − 1, which the model reads, holds none of it: the codec may listen while the model thinks.
        → what is known of the user in column t [B, 8].
        """
        columns = state.position[:, None] + self.delays[USER]
        index = torch.remainder(columns, self.length)[:, :, None]
        rows = state.columns[:, USER]
        rows.scatter_(2, index, keep_inactive(user_codes[:, :, None], rows.gather(2, index), active))
        return self._read(state, state.position)[:, USER]

    def finish(self, state: FrameState, column: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """End call t with column t whole [B, 17].

        → frame t − 1 [B, 17] and whether there is one to play: [B] bool, false before call 2 and for a told frame.
        """
        current = state.position
        self._write(state, current[:, None].expand_as(column), column, active)
        previous = self._read(state, current - 1)
        frame = torch.where(self.delays == 0, previous, column)
        valid = active & (current >= 2) & (state.fresh == 0)
        state.fresh.masked_fill_(active, 0)
        state.position.add_(active.to(torch.int64))
        return frame, valid

    def force(self, state: FrameState, frames: Tensor) -> Tensor:
        """Make N calls at once whose tokens are all known, on a state of one slot.

        frames: [N, 17] int64 → the columns the temporal transformer reads meanwhile, [N or N − 1, 17]
        (the first call of a stream reads nothing).
        """
        first, count = int(state.position[0]), frames.shape[0]
        number = torch.arange(first, first + count + 1, device=frames.device)
        source = number[:, None] - self.delays - first  # the frame each entry comes from, [N + 1, 17]
        columns = frames.gather(0, source.clamp(0, count - 1))
        columns[0] = torch.where(source[0] < 0, self._read(state, number[:1])[0], columns[0])
        columns = torch.where(number[:, None] <= self.delays, self.initial, columns)
        before = self._read(state, number[:1] - 1)
        for column in range(max(0, count - self.length), count + 1):
            known = (source[column] < count) & (source[column] >= -self.config.max_delay)
            entry = state.columns[0, :, (first + column) % self.length]
            entry.copy_(torch.where(known, columns[column], entry))
        state.position.add_(count)
        inputs = torch.cat([before, columns[: count - 1]])
        return inputs[1:] if first == 0 else inputs

    def check(self, columns: Tensor, position: int) -> None:
        """Raise InputError unless columns [17, max_delay + 3] int64, on the CPU, may stand so before call ``position``.

        For columns from files: embedding lookups do not check the range of tokens.
        """
        for stream, delay in enumerate(self.config.delays):
            tokens = columns[stream].tolist()
            most = self.config.initial_text_id if stream == TEXT.start else self.config.initial_audio_id
            # What is read next, and what the user said of later columns, is not for the model to decide.
            known_until = position + delay if stream >= USER.start else position
            known = (tokens[column % self.length] for column in range(max(position - 1, delay + 1), known_until))
            if not UNKNOWN <= min(tokens) <= max(tokens) <= most or UNKNOWN in known:
                raise InputError(f"stream {stream} of the snapshot holds tokens that cannot be there; make it again")


def column_of(text: Tensor, codes: Tensor, user: Tensor) -> Tensor:
    """Join text [B], agent codes [B, 8] and user codes [B, 8] to columns [B, 17]."""
    return torch.cat([text[:, None], codes, user], dim=1)


def live_frame(user_codes: Tensor) -> Tensor:
    """A conversation's frame with known user codes: user_codes [B, 8] int64 → [B, 17], the rest UNKNOWN."""
    unknown = torch.full_like(user_codes, UNKNOWN)
    return column_of(unknown[:, 0], unknown, user_codes)


def unheard_frame(slots: int, device: str | torch.device) -> Tensor:
    """A frame before the user was heard: [B, 17] int64, all UNKNOWN."""
    unknown = torch.full((slots, NUM_AGENT_CODEBOOKS), UNKNOWN, dtype=torch.int64, device=device)
    return live_frame(unknown)


def text_of(tokens: Tensor) -> Tensor:
    """Text token of columns [..., 17] → [...]."""
    return tokens[..., TEXT.start]


def agent_of(tokens: Tensor) -> Tensor:
    """Agent codes of columns [..., 17] → [..., 8]."""
    return tokens[..., AGENT]
