"""What every state can do: reset rows, leave the engine and come back elsewhere."""

import pytest
import torch

from personaplex.errors import InputError
from personaplex.nn.attention import TransformerState
from personaplex.nn.state import export_row, load_row_, reset_rows, row_view


def filled_state(slots=3, steps=(2, 5, 9), capacity=4):
    torch.manual_seed(0)
    state = TransformerState.empty(slots, 2, 2, capacity, 3, torch.float32, "cpu")
    for leaf in state.leaves():
        if leaf.ring_axis is not None:
            leaf.tensor.normal_()
    state.position.copy_(torch.tensor(steps))
    return state


def test_a_snapshot_holds_the_filled_part_only():
    state = filled_state()
    assert [export_row(state, row)["layers.0.keys"].shape[1] for row in range(3)] == [2, 4, 4]


def test_load_puts_a_row_elsewhere_and_leaves_the_others_alone():
    state = filled_state()
    snapshot = export_row(state, 0)
    untouched = export_row(state, 1)
    load_row_(state, 2, snapshot)
    for name, tensor in export_row(state, 2).items():
        assert torch.equal(tensor, snapshot[name]), name
    for name, tensor in export_row(state, 1).items():
        assert torch.equal(tensor, untouched[name]), name


def test_a_snapshot_of_another_shape_is_refused_before_anything_is_written():
    state = filled_state()
    snapshot = export_row(state, 0)
    snapshot["position"] = torch.tensor(7)
    snapshot["layers.1.values"] = torch.zeros(2, 2, 5)
    before = export_row(state, 1)
    with pytest.raises(InputError, match=r"layers.1.values"):
        load_row_(state, 1, snapshot)
    assert torch.equal(export_row(state, 1)["position"], before["position"])
    with pytest.raises(InputError, match="another model"):
        load_row_(state, 1, {"position": torch.tensor(1)})


def test_a_longer_cache_than_the_ring_is_refused():
    long, short = filled_state(capacity=8), filled_state(capacity=4)
    with pytest.raises(InputError, match="context"):
        load_row_(short, 0, export_row(long, 2))


def test_reset_touches_only_the_rows_asked_for_and_keeps_addresses():
    state = filled_state()
    address = state.position.data_ptr()
    reset_rows(state, torch.tensor([False, True, False]))
    assert state.position.tolist() == [2, 0, 9]
    assert state.position.data_ptr() == address


def test_a_row_view_shares_memory():
    state = filled_state()
    row_view(state, 1).position.add_(1)
    assert state.position.tolist() == [2, 6, 9]
