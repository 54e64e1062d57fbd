"""The ring cache: its window, its slots and its two ways of being filled."""

import math

import pytest
import torch

from personaplex.nn.attention import TransformerState, attend_chunk, attend_step

HEADS, WIDTH, CAPACITY = 2, 4, 6


def run_steps(qkv, state, group, active=None, span=CAPACITY):
    slots, steps = qkv.shape[1], qkv.shape[3]
    active = torch.ones(slots, dtype=torch.bool) if active is None else active
    out = []
    for start in range(0, steps, group):
        query, key, value = qkv[..., start : start + group, :]
        out.append(attend_step(query, key, value, state.layers[0], state.position, active, span))
        state.advance(group, active)
    return torch.cat(out, dim=2)


def reference(qkv, group):
    """Plain attention with the published window: the last position of the group − C + 2 … the query."""
    query, key, value = qkv
    steps = query.shape[2]
    at = torch.arange(steps)
    last = at // group * group + group - 1
    seen = (at[None] <= at[:, None]) & (at[None] >= (last - CAPACITY + 2)[:, None])
    scores = (query @ key.transpose(-1, -2)) / math.sqrt(WIDTH)
    return scores.masked_fill(~seen, -math.inf).softmax(-1) @ value


def empty(slots=1):
    return TransformerState.empty(slots, 1, HEADS, CAPACITY, WIDTH, torch.float32, "cpu")


@pytest.mark.parametrize("group", [1, 2])
def test_stepping_past_the_wrap_equals_windowed_attention(group):
    qkv = torch.randn(3, 1, HEADS, 20, WIDTH, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(run_steps(qkv, empty(), group), reference(qkv, group))


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("chunks", [(6, 6, 4), (2, 4, 6, 4), (4, 2, 2, 2, 6)])
@pytest.mark.parametrize("bounded", [True, False])
def test_chunks_equal_steps_in_answer_and_in_cache(group, chunks, bounded):
    qkv = torch.randn(3, 1, HEADS, sum(chunks), WIDTH, generator=torch.Generator().manual_seed(2))
    stepped, chunked, out, start = empty(), empty(), [], 0
    on = torch.ones(1, dtype=torch.bool)
    for size in chunks:
        query, key, value = qkv[..., start : start + size, :]
        bound = start if bounded else None
        out.append(attend_chunk(query, key, value, chunked.layers[0], chunked.position, on, group, bound))
        chunked.advance(size, on)
        start += size
    torch.testing.assert_close(torch.cat(out, 2), run_steps(qkv, stepped, group))
    assert torch.equal(stepped.layers[0].keys, chunked.layers[0].keys)
    assert torch.equal(stepped.layers[0].values, chunked.layers[0].values)


def test_a_slot_that_does_not_move_keeps_every_bit():
    qkv = torch.randn(3, 2, HEADS, 3, WIDTH, generator=torch.Generator().manual_seed(3))
    state = empty(2)
    run_steps(qkv, state, 1)
    keys, values = state.layers[0].keys.clone(), state.layers[0].values.clone()
    run_steps(qkv * 2, state, 1, active=torch.tensor([False, True]))
    assert state.position.tolist() == [3, 6]
    assert torch.equal(state.layers[0].keys[0], keys[0]) and torch.equal(state.layers[0].values[0], values[0])
    assert not torch.equal(state.layers[0].keys[1], keys[1])


def test_a_short_span_gives_the_same_answer_while_the_cache_is_short():
    qkv = torch.randn(3, 1, HEADS, 3, WIDTH, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(run_steps(qkv, empty(), 1, span=4), run_steps(qkv, empty(), 1))
