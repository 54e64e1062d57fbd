"""The engine's promises: slots, prompts, snapshots and seeds."""

from dataclasses import replace

import pytest
import torch

from benchmarks.models import random_model
from personaplex.engine.columns import live_frame
from personaplex.engine.engine import Engine
from personaplex.engine.prediction import PlainPredictor
from personaplex.errors import InputError
from personaplex.messages import SamplingOptions
from personaplex.nn.packing import WeightFormat

FRAMES = 30


def make(golden, slots=1, **options):
    return Engine(golden.config, golden.lm, golden.mimi, slots=slots, **options)


def speech(seed, frames=FRAMES):
    """[frames, 1920]: a different loud noise for every seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, 1920, generator=generator) * 0.3


def prompt(seed, frames=20):
    generator = torch.Generator().manual_seed(seed)
    known = torch.randint(0, 400, (frames, 17), generator=generator)
    known[:, 1:] = torch.randint(0, 2048, (frames, 16), generator=generator)
    return known


def talk(engine, row, pcm, rows=None):
    """Step one slot alone: list of (tokens [17], pcm [1920])."""
    active = torch.arange(engine.slots) == row
    outputs = [engine.step(frame.expand(engine.slots, -1), active) for frame in pcm]
    return [(out.tokens[row], out.pcm[row], bool(out.valid[row])) for out in outputs]


def same(left, right):
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(left, right, strict=True))


def begin(engine, row, seed, options=None):
    engine.reset(row)
    engine.prefill_frames(row, prompt(seed))
    engine.reset_codec(row)
    engine.set_sampling(row, options or SamplingOptions(seed=seed))


def test_parallel_prompt_equals_stepped_prompt(golden):
    """Past the wrap of the ring (context 40), in several pieces, from the very first call."""
    frames = prompt(0, 130)
    stepped, parallel = make(golden), make(golden)
    on = torch.ones(1, dtype=torch.bool)
    for frame in frames:
        stepped.step_tokens(frame[None], on)
    for part in frames.split([1, 1, 50, 3, 75]):
        parallel.prefill_frames(0, part)
    assert torch.equal(stepped.state.temporal.position, parallel.state.temporal.position)
    for engine in (stepped, parallel):
        engine.set_sampling(0, SamplingOptions(greedy=True))
    for user in prompt(1, 20)[:, 9:]:
        left, right = (engine.step_tokens(live_frame(user[None]), on) for engine in (stepped, parallel))
        torch.testing.assert_close(left.text_logits, right.text_logits, atol=1e-4, rtol=0)
        assert torch.equal(left.tokens, right.tokens)


@pytest.mark.parametrize("format", [WeightFormat.BFLOAT16, WeightFormat.INT8, WeightFormat.INT4], ids=lambda f: f.value)
def test_parallel_prompt_of_rounded_weights_is_near_the_stepped_one(golden, format, tmp_path):
    """Each rounds activations in its own way; the matrices are wide enough for every kernel."""
    config = replace(golden.config, lm=replace(golden.config.lm, dim=128))
    model = random_model(config, format, "cpu", tmp_path)
    assert all(rows % 64 == 0 for rows in (3 * 128, model.lm.temporal.layers[0].gating.linear_in.out_features))
    frames, on = prompt(0, 30), torch.ones(1, dtype=torch.bool)
    stepped, parallel = make(model, cache_dtype=torch.float32), make(model, cache_dtype=torch.float32)
    for frame in frames:
        stepped.step_tokens(frame[None], on)
    parallel.prefill_frames(0, frames)
    for left, right in zip(stepped.state.temporal.layers, parallel.state.temporal.layers, strict=True):
        for wanted, found in ((left.keys, right.keys), (left.values, right.values)):
            assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_a_prompt_with_an_unknown_token_is_refused(golden):
    frames = prompt(0)
    frames[3, 4] = -2
    with pytest.raises(InputError, match="UNKNOWN"):
        make(golden).prefill_frames(0, frames)


def test_two_slots_at_different_positions_equal_two_single_runs(golden):
    alone = []
    for seed in (1, 2):
        engine = make(golden)
        begin(engine, 0, seed)
        alone.append(talk(engine, 0, speech(seed)))
    both = make(golden, slots=2)
    begin(both, 0, 1)
    begin(both, 1, 2)
    together = [[], []]
    at = [0, 0]
    # Slot 1 starts later and pauses now and then.
    for tick in range(2 * FRAMES):
        moves = [at[0] < FRAMES and tick % 5 != 2, at[1] < FRAMES and tick > 6 and tick % 3 != 0]
        pcm = torch.stack([speech(seed)[min(at[row], FRAMES - 1)] for row, seed in enumerate((1, 2))])
        out = both.step(pcm, torch.tensor(moves))
        for row in range(2):
            if moves[row]:
                together[row].append((out.tokens[row], out.pcm[row], bool(out.valid[row])))
                at[row] += 1
    for row in range(2):
        assert len(together[row]) == FRAMES
        for (tokens, pcm, _), (want_tokens, want_pcm, _) in zip(together[row], alone[row], strict=True):
            assert torch.equal(tokens, want_tokens)
            torch.testing.assert_close(pcm, want_pcm, atol=1e-5, rtol=0)


def test_an_inactive_slot_stays_bit_identical(golden):
    engine = make(golden, slots=2)
    begin(engine, 0, 1)
    begin(engine, 1, 2)
    talk(engine, 0, speech(1, 3))
    before = engine.export(0)
    talk(engine, 1, speech(2, 5))
    after = engine.export(0)
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())
    assert torch.equal(before.noise, after.noise)


@pytest.mark.parametrize("warm_frames", [3, 60])
def test_a_snapshot_goes_on_bit_identically_in_another_slot(golden, warm_frames):
    engine = make(golden, slots=3)
    begin(engine, 0, 1)
    begin(engine, 2, 9)
    talk(engine, 0, speech(1, warm_frames))
    talk(engine, 2, speech(9, 7))
    snapshot = engine.export(0)
    going_on = talk(engine, 0, speech(5))
    engine.load(2, snapshot)
    assert same(talk(engine, 2, speech(5)), going_on)


def test_a_seed_reproduces_a_conversation_whatever_runs_beside_it(golden):
    engine = make(golden, slots=2)
    begin(engine, 0, 4)
    alone = talk(engine, 0, speech(4))
    begin(engine, 0, 4)
    begin(engine, 1, 8)
    beside = []
    for frame in speech(4):
        talk(engine, 1, speech(8, 2))
        beside += talk(engine, 0, frame[None])
    assert same(beside, alone)
    begin(engine, 0, 4, SamplingOptions(seed=5))
    assert not same(talk(engine, 0, speech(4)), alone)


def test_reset_forgets_the_conversation_before(golden):
    engine = make(golden)
    begin(engine, 0, 3)
    first = talk(engine, 0, speech(3))
    talk(engine, 0, speech(7, 50))
    begin(engine, 0, 3)
    assert same(talk(engine, 0, speech(3)), first)


def test_without_a_prompt_the_first_two_calls_return_nothing(golden):
    engine = make(golden)
    engine.set_sampling(0, SamplingOptions(greedy=True))
    assert [valid for _, _, valid in talk(engine, 0, speech(0, 4))] == [False, False, True, True]


def test_a_shorter_context_is_taken_and_an_impossible_one_refused(golden):
    engine = make(golden, context=10)
    begin(engine, 0, 1)
    talk(engine, 0, speech(1))
    assert engine.state.temporal.layers[0].capacity == 10
    for wrong in (3, 41):
        with pytest.raises(InputError, match="allowed"):
            make(golden, context=wrong)


@pytest.mark.parametrize("plain", [False, True], ids=["compiled", "operators"])
@pytest.mark.parametrize("where", ["temporal", "depth"])
def test_lost_numbers_are_heard_in_their_slot_alone(golden, monkeypatch, plain, where):
    """Speech is decoded from whole numbers, so that it sounded sane whatever the language model had become."""
    engine = make(golden, slots=2, **({"predictor": PlainPredictor(golden.lm)} if plain else {}))
    both = torch.ones(2, dtype=torch.bool)
    for row in range(2):
        begin(engine, row, row)
    assert engine.step(speech(1, 2), both).pcm.isfinite().all()
    if where == "temporal":
        engine.state.temporal.layers[0].values[1].fill_(torch.nan)
    else:
        predict = engine.predictor

        def spoil(*given):
            prediction = predict(*given)
            prediction.audio_logits[1, 5, 7] = torch.inf
            return prediction

        engine.predictor = spoil
    out = engine.step(speech(2, 2), both)
    assert out.pcm[0].isfinite().all() and out.pcm[1].isnan().all()


def test_every_tensor_keeps_its_address_through_a_conversation(golden):
    engine = make(golden, slots=2)
    addresses = [leaf.tensor.data_ptr() for leaf in engine.state.leaves()]
    begin(engine, 0, 1)
    talk(engine, 0, speech(1, 5))
    engine.load(1, engine.export(0))
    engine.reset(0)
    assert [leaf.tensor.data_ptr() for leaf in engine.state.leaves()] == addresses
