"""The columns' rules, against a slow and literal rendering of them in plain Python."""

import pytest
import torch

from personaplex.config import LMConfig
from personaplex.engine.columns import UNKNOWN, FrameClock, FrameState

CONFIG = LMConfig(dim=8, num_heads=2, text_card=50, card=20)
INITIAL = [CONFIG.text_card] + [CONFIG.card] * CONFIG.n_q


class LiteralClock:
    """A dictionary of columns, written as the rules read."""

    def __init__(self):
        self.columns, self.t = {}, 0

    def token(self, column, stream):
        if column <= CONFIG.delays[stream]:
            return INITIAL[stream]
        return self.columns.get((column, stream), UNKNOWN)

    def begin(self, known):
        for stream, token in enumerate(known):
            self.columns[self.t + CONFIG.delays[stream], stream] = token
        return [[self.token(p, s) for s in range(17)] for p in (self.t - 1, self.t)]

    def finish(self, column):
        for stream, token in enumerate(column):
            self.columns[self.t, stream] = token
        frame = [self.token(self.t - 1 + d, s) for s, d in enumerate(CONFIG.delays)]
        self.t += 1
        return frame, self.t - 1 >= 2


def random_known(generator, live):
    known = torch.randint(0, 20, (17,), generator=generator)
    if live:
        known[:9] = UNKNOWN
    return known


@pytest.mark.parametrize("prompt_frames", [0, 1, 2, 7])
def test_columns_follow_the_rules(prompt_frames):
    generator = torch.Generator().manual_seed(prompt_frames)
    clock, state, literal = FrameClock(CONFIG), FrameState.empty(1, CONFIG, "cpu"), LiteralClock()
    on = torch.ones(1, dtype=torch.bool)
    for step in range(20):
        known = random_known(generator, live=step >= prompt_frames)
        read, forced = clock.begin(state, known[None], on)
        want_read, want_forced = literal.begin(known.tolist())
        if step > 0:
            assert read[0].tolist() == want_read
        assert forced[0].tolist() == want_forced
        predicted = torch.randint(0, 20, (17,), generator=generator)
        column = torch.where(forced[0] == UNKNOWN, predicted, forced[0])
        frame, valid = clock.finish(state, column[None], on)
        want_frame, want_valid = literal.finish(column.tolist())
        assert valid.item() == want_valid
        if want_valid:
            assert frame[0].tolist() == want_frame


@pytest.mark.parametrize("parts", [(1,), (2,), (9,), (1, 1, 5), (4, 3), (2, 1, 1)])
def test_forcing_many_frames_equals_calling_one_by_one(parts):
    generator = torch.Generator().manual_seed(sum(parts))
    clock, on = FrameClock(CONFIG), torch.ones(1, dtype=torch.bool)
    stepped, forced_state = FrameState.empty(1, CONFIG, "cpu"), FrameState.empty(1, CONFIG, "cpu")
    frames = torch.stack([random_known(generator, live=False) for _ in range(sum(parts))])
    want = []
    for t, frame in enumerate(frames):
        read, known = clock.begin(stepped, frame[None], on)
        clock.finish(stepped, known, on)
        if t > 0:
            want.append(read[0])
    got = torch.cat([clock.force(forced_state, part) for part in frames.split(list(parts))])
    assert torch.equal(got, torch.stack(want) if want else got[:0])
    assert torch.equal(forced_state.position, stepped.position)
    for _ in range(3):
        live = random_known(generator, live=True)[None]
        for a, b in zip(clock.begin(stepped, live, on), clock.begin(forced_state, live, on), strict=True):
            assert torch.equal(a, b)
        column = torch.arange(17)[None]
        a, b = clock.finish(stepped, column, on), clock.finish(forced_state, column, on)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_slots_keep_their_own_time():
    clock, state = FrameClock(CONFIG), FrameState.empty(2, CONFIG, "cpu")
    known = torch.arange(34).view(2, 17) % 20
    for moves in ([True, False], [True, True], [True, False]):
        active = torch.tensor(moves)
        before = state.columns[~active].clone()
        _, forced = clock.begin(state, known, active)
        _, valid = clock.finish(state, forced, active)
        assert torch.equal(state.columns[~active], before)
    assert state.position.tolist() == [3, 1] and valid.tolist() == [True, False]
