"""Explicit conversation state: typed dataclasses of preallocated, slot-first tensors.

A state is created outside the modules, passed in, and updated in place by exactly one call, so
every tensor keeps its address and a step can be captured in a CUDA graph. What every state needs
exists here once: resetting rows, viewing one row, exporting a row and loading it elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from personaplex.errors import InputError

S = TypeVar("S", bound="State")

MAX_POSITION = 2**31 - 1
"""More steps than any stream has: years."""


def slot_field(*, reset: float = 0, ring_axis: int | None = None) -> Any:
    """A tensor field ``[B, …]``.

    ``reset`` is its value at the start of a stream. ``ring_axis`` marks a cache written by
    position modulo its length along that axis: it is never cleared (its owner's ``position``
    hides what was not written), and a snapshot holds the filled part only.
    """
    return dataclasses.field(metadata={"reset": reset, "ring_axis": ring_axis})


@dataclass(frozen=True)
class Leaf:
    """One tensor of a state, with its dotted name."""

    name: str
    tensor: Tensor
    reset: float
    ring_axis: int | None
    position: Tensor | None  # [B] int64, steps written so far into a ring

    def filled(self, row: int) -> int | None:
        """Number of ring entries that hold data for this row; None if not a ring."""
        if self.ring_axis is None:
            return None
        assert self.position is not None, f"ring {self.name} has no position above it"
        return min(int(self.position[row]), self.tensor.shape[self.ring_axis])


@dataclass
class State:
    """Base of all states: fields are slot-first tensors, other states, or lists of states."""

    def leaves(self, prefix: str = "", position: Tensor | None = None) -> Iterator[Leaf]:
        """Every tensor below, depth first, in field order."""
        position = getattr(self, "position", position)
        for item in dataclasses.fields(self):
            value, name = getattr(self, item.name), prefix + item.name
            if isinstance(value, Tensor):
                yield Leaf(name, value, item.metadata["reset"], item.metadata["ring_axis"], position)
            elif isinstance(value, State):
                yield from value.leaves(name + ".", position)
            else:
                for index, child in enumerate(value):
                    yield from child.leaves(f"{name}.{index}.", position)

    @property
    def slots(self) -> int:
        return next(self.leaves()).tensor.shape[0]

    @property
    def nbytes(self) -> int:
        return sum(leaf.tensor.nbytes for leaf in self.leaves())


def reset_rows(state: State, rows: Tensor) -> None:
    """Reset the slots where ``rows [B] bool`` is true to the start of a stream, in place."""
    for leaf in state.leaves():
        if leaf.ring_axis is None:
            mask = rows.view(-1, *[1] * (leaf.tensor.dim() - 1))
            leaf.tensor.masked_fill_(mask, leaf.reset)


def rows_view(state: S, start: int, stop: int) -> S:
    """The same state with only slots ``start`` … ``stop − 1``, sharing its memory."""
    changes: dict[str, Any] = {}
    for item in dataclasses.fields(state):
        value = getattr(state, item.name)
        if isinstance(value, Tensor):
            changes[item.name] = value[start:stop]
        elif isinstance(value, State):
            changes[item.name] = rows_view(value, start, stop)
        else:
            changes[item.name] = [rows_view(child, start, stop) for child in value]
    return type(state)(**changes)


def row_view(state: S, row: int) -> S:
    """The same state with only slot ``row`` (B = 1), sharing its memory."""
    return rows_view(state, row, row + 1)


def export_row(state: State, row: int) -> dict[str, Tensor]:
    """Copy slot ``row`` out, on the CPU: name → tensor without the slot axis, rings cut to what is filled."""
    snapshot = {}
    for leaf in state.leaves():
        tensor = leaf.tensor[row]
        filled = leaf.filled(row)
        if filled is not None and leaf.ring_axis is not None:
            tensor = tensor.narrow(leaf.ring_axis - 1, 0, filled)
        # Page-locked where it comes from a GPU: on the way back the driver needs no copy of its own.
        held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        snapshot[leaf.name] = held.copy_(tensor.detach())
    return snapshot


def load_row_(state: State, row: int, snapshot: dict[str, Tensor]) -> None:
    """Put an exported row into slot ``row``; raises InputError, before writing, when it does not fit."""
    for leaf in _fitting_leaves(state, snapshot):
        have, room = snapshot[leaf.name], leaf.tensor[row]
        if leaf.ring_axis is not None:
            room = room.narrow(leaf.ring_axis - 1, 0, have.shape[leaf.ring_axis - 1])
        room.copy_(have, non_blocking=have.is_pinned())


def check_row(state: State, snapshot: dict[str, Tensor]) -> None:
    """Raise InputError for an exported row that does not fit, or whose positions and rings are inconsistent.

    For rows from files: a step writes at the position without a check. ``snapshot`` is on the CPU; the state's own
    numbers are not read.
    """
    leaves = _fitting_leaves(state, snapshot)
    names = {id(leaf.tensor): leaf.name for leaf in leaves}
    for leaf in leaves:
        if leaf.position is None:
            continue
        position = int(snapshot[names[id(leaf.position)]])
        if not 0 <= position <= MAX_POSITION:
            raise InputError(f"the snapshot's position is {position}; 0 to {MAX_POSITION} are allowed: make it again")
        if leaf.ring_axis is None:
            continue
        held = snapshot[leaf.name].shape[leaf.ring_axis - 1]
        filled = min(position, leaf.tensor.shape[leaf.ring_axis])
        if held != filled:
            raise InputError(f"the snapshot's {leaf.name} holds {held} steps and should hold {filled}: make it again")


def _fitting_leaves(state: State, snapshot: dict[str, Tensor]) -> list[Leaf]:
    """All leaves of a state; raises InputError unless an exported row has the same names, types and shapes."""
    leaves = list(state.leaves())
    names = {leaf.name for leaf in leaves}
    if names != snapshot.keys():
        odd = sorted(names ^ snapshot.keys())[:4]
        raise InputError(f"the snapshot belongs to another model: its tensors differ ({', '.join(odd)}, …)")
    for leaf in leaves:
        have, room = snapshot[leaf.name], leaf.tensor[0]
        fits = list(room.shape)
        if leaf.ring_axis is not None and have.dim() == room.dim():
            axis = leaf.ring_axis - 1
            fits[axis] = min(have.shape[axis], fits[axis])
        if list(have.shape) != fits or have.dtype != room.dtype:
            raise InputError(
                f"the snapshot's {leaf.name} is {have.dtype} {list(have.shape)}, this engine holds "
                f"{room.dtype} {list(room.shape)}: make the snapshot again with this model, format and context"
            )
    return leaves


def keep_inactive(new: Tensor, old: Tensor, active: Tensor) -> Tensor:
    """``new`` where the slot moves, ``old`` where it does not; ``active [B] bool``, tensors ``[B, …]``."""
    return torch.where(active.view(-1, *[1] * (new.dim() - 1)), new, old)
