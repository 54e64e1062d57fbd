"""A prompt that is kept in the cache: what is defined, on every path, and what stays as it was."""

from dataclasses import replace

import pytest
import torch
from conftest import GOLDEN_FOLDER, GOLDEN_TEXT

from personaplex.engine.backends.cpu_predictor import NativePredictor
from personaplex.engine.engine import Engine
from personaplex.engine.prediction import PlainPredictor
from personaplex.engine.telling import KEPT_NAME, LEAST_LIVE_FRAMES
from personaplex.errors import ConfigError, InputError, PromptError
from personaplex.messages import SamplingOptions
from personaplex.models.temporal import PREFILL_CHUNK_FRAMES
from personaplex.native.library import native_library
from personaplex.nn.layers import apply_rope, rope_angles
from personaplex.personas.voices import voice_from_file
from personaplex.session.session import Session
from personaplex.session.snapshots import read_snapshot, save_snapshot

CONTEXT, ON = 40, torch.ones(1, dtype=torch.bool)
needs_code = pytest.mark.skipif(native_library() is None, reason="there is no compiled code here")


def columns(count, seed=0):
    """[count, 17] int64: random known tokens."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.randint(0, 400, (count, 17), generator=generator)
    known[:, 1:] = torch.randint(0, 2048, (count, 16), generator=generator)
    return known


# --- the definition


def defined(temporal, x, kept, context):
    """Text logits [T, text_card] of embeddings x [1, T, dim], written down as the docstring of ``attention`` has it."""
    config, at = temporal.config, torch.arange(x.shape[1])
    query_at, key_at = at[:, None], at[None, :]
    newest = context - 1 - kept  # entries of the ring that are seen
    seen = (key_at <= query_at) & ((key_at < kept) | (key_at > query_at - newest))
    distance = torch.where(key_at < kept, query_at.clamp(max=context - 2) - key_at, query_at - key_at)
    for layer in temporal.layers:
        query, key, value = layer.project(x)
        cos, sin = rope_angles(distance.reshape(1, -1), config.head_dim, config.max_period)
        pairs = query[:, :, :, None].expand(-1, -1, -1, len(at), -1).flatten(2, 3)
        turned = apply_rope(pairs, cos, sin).unflatten(2, (len(at), len(at)))  # each query for each key
        scores = (turned * key[:, :, None]).sum(-1) * config.head_dim**-0.5
        x = layer.finish(x, scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value)
    return temporal.text_linear(temporal.out_norm(x))[0]


def stepped(temporal, x, kept, context, span=None):
    state, found = temporal.initial_state(1, context, torch.float32, "cpu"), []
    for number in range(x.shape[1]):
        if number == kept:
            state.kept.fill_(kept)
            state.held.fill_(kept)
        found.append(temporal.step(x[:, number : number + 1], state, ON, span or min(number + 1, context))[1][0])
    return torch.stack(found), state


@pytest.mark.parametrize("kept", [0, 1, 9, 30])
@torch.inference_mode()
def test_steps_are_what_is_defined(golden, kept):
    temporal = golden.lm.temporal
    x = temporal.embed(columns(3 * CONTEXT)[None], torch.float32)
    found, _ = stepped(temporal, x, kept, CONTEXT)
    torch.testing.assert_close(found, defined(temporal, x, kept, CONTEXT), atol=2e-4, rtol=0)
    if kept:
        published, _ = stepped(temporal, x, 0, CONTEXT)
        assert torch.equal(found[: CONTEXT - 1], published[: CONTEXT - 1])
        assert (found[CONTEXT:] - published[CONTEXT:]).abs().amax(1).min() > 1e-3


@torch.inference_mode()
def test_a_loose_bound_of_what_is_filled_changes_no_bit_before_the_window_is_passed(golden):
    """A CUDA graph that is made for a full cache runs long before the cache is full."""
    temporal = golden.lm.temporal
    x = temporal.embed(columns(CONTEXT - 1)[None], torch.float32)
    (kept, _), (published, _) = (stepped(temporal, x, count, CONTEXT, span=CONTEXT) for count in (9, 0))
    assert torch.equal(kept, published)


@pytest.mark.parametrize("pieces", [[90], [3, 30, 1, 1, 7, 48], [CONTEXT - 12, 62]])
@torch.inference_mode()
def test_many_frames_at_once_equal_steps(golden, pieces):
    kept, temporal = 12, golden.lm.temporal
    x = temporal.embed(columns(kept + sum(pieces) + 30)[None], torch.float32)
    want, stepping = stepped(temporal, x, kept, CONTEXT)
    state = temporal.initial_state(1, CONTEXT, torch.float32, "cpu")
    at = 0
    for piece in (kept, *pieces):
        temporal.prefill(x[:, at : at + piece], state, min(at, CONTEXT))
        if not at:
            state.kept.fill_(kept)
            state.held.fill_(kept)
        at += piece
    found = [temporal.step(x[:, n : n + 1], state, ON, CONTEXT)[1][0] for n in range(at, x.shape[1])]
    torch.testing.assert_close(torch.stack(found), want[at:], atol=2e-4, rtol=0)
    for left, right in zip(stepping.leaves(), state.leaves(), strict=True):
        torch.testing.assert_close(left.tensor, right.tensor, atol=2e-4, rtol=0)
    assert PREFILL_CHUNK_FRAMES > CONTEXT, "a block had to be cut to the ring"


# --- engines


def make(model, predictor, slots=1, **options):
    return Engine(model.config, model.lm, model.mimi, slots=slots, predictor=predictor(model.lm), **options)


def told(engine, row, count, seed):
    engine.reset(row)
    engine.prefill_frames(row, columns(count, seed))
    engine.reset_codec(row)
    engine.keep(row)
    engine.set_sampling(row, SamplingOptions(greedy=True))


def speech(seed, frames):
    return torch.randn(frames, 1920, generator=torch.Generator().manual_seed(seed)) * 0.3


@needs_code
@pytest.mark.parametrize(
    "cache_dtype", [torch.float32, torch.bfloat16, torch.int8], ids=["float32", "bfloat16", "int8"]
)
def test_compiled_code_keeps_what_the_operators_keep(golden, cache_dtype):
    """Slots with prompts of different lengths, one without, that start later and pause."""
    plain, compiled = (make(golden, kind, 3, cache_dtype=cache_dtype) for kind in (PlainPredictor, NativePredictor))
    for engine in (plain, compiled):
        told(engine, 0, 15, 1)
        told(engine, 1, 4, 2)
    for left, right in zip(plain.state.leaves(), compiled.state.leaves(), strict=True):
        assert torch.equal(left.tensor, right.tensor)
    limit = 5e-4 if cache_dtype is torch.float32 else 5e-2
    for tick in range(80):
        moves = torch.tensor([tick % 4 != 3, tick > 5, tick % 3 != 1])
        known = columns(3, 100 + tick)  # the same in both, whatever they would have said
        left, right = (engine.step_tokens(known, moves) for engine in (plain, compiled))
        rows = left.valid
        torch.testing.assert_close(right.text_logits[rows], left.text_logits[rows], atol=limit, rtol=0)
    assert plain.state.temporal.kept.tolist() == compiled.state.temporal.kept.tolist() == [14, 3, 0]
    assert (plain.state.temporal.position > CONTEXT).all()


@pytest.mark.parametrize("predictor", [PlainPredictor, pytest.param(NativePredictor, marks=needs_code)])
def test_slots_with_prompts_of_other_lengths_equal_single_runs(golden, predictor):
    lengths, frames = (15, 6), speech(3, 60)
    alone = []
    for row, length in enumerate(lengths):
        engine = make(golden, predictor)
        told(engine, 0, length, row)
        alone.append([engine.step(frame[None], ON).tokens[0] for frame in frames])
    both = make(golden, predictor, 2)
    for row, length in enumerate(lengths):
        told(both, row, length, row)
    together = [both.step(frame.expand(2, -1), torch.ones(2, dtype=torch.bool)).tokens for frame in frames]
    for row in range(2):
        assert torch.equal(torch.stack(together)[:, row], torch.stack(alone[row]))


@pytest.mark.parametrize("predictor", [PlainPredictor, pytest.param(NativePredictor, marks=needs_code)])
@pytest.mark.parametrize("warm_frames", [3, 50])
def test_a_snapshot_goes_on_bit_identically_with_what_it_keeps(golden, predictor, warm_frames):
    engine = make(golden, predictor, 2)
    told(engine, 0, 15, 1)
    first, second = torch.tensor([True, False]), torch.tensor([False, True])
    for frame in speech(1, warm_frames):
        engine.step(frame.expand(2, -1), first)
    snapshot = engine.export(0)
    engine.check(snapshot)
    going_on = [engine.step(frame.expand(2, -1), first).tokens[0] for frame in speech(2, 40)]
    engine.load(1, snapshot)
    again = [engine.step(frame.expand(2, -1), second).tokens[1] for frame in speech(2, 40)]
    assert torch.equal(torch.stack(going_on), torch.stack(again))
    engine.reset(1)
    assert engine.state.temporal.kept.tolist() == [14, 0]


# --- sessions


@pytest.fixture
def roomy(golden):
    """The golden model with a window of 200 frames, of which its prompt takes 92."""
    return replace(golden, config=replace(golden.config, lm=replace(golden.config.lm, context=200)))


@pytest.fixture
def voice(golden):
    return voice_from_file(GOLDEN_FOLDER / "voices" / "VOICE.wav", config=golden.config)


def test_until_the_window_is_passed_both_say_the_same(roomy, voice):
    said = {}
    for window in ("persona", "published"):
        session = Session(roomy, window=window)
        with session.start(session.prepare(voice=voice, text=GOLDEN_TEXT), SamplingOptions(seed=4)) as conversation:
            said[window] = torch.stack(
                [torch.from_numpy(conversation.step(frame.numpy()).tokens) for frame in speech(0, 150)]
            )
    same = (said["persona"] == said["published"]).all(dim=1)
    assert same[: 200 - 92].all() and not same.all()


def test_a_prompt_that_leaves_no_room_is_refused_with_what_is_enough(golden, roomy, voice):
    least = 92 + LEAST_LIVE_FRAMES
    with pytest.raises(
        PromptError, match=f"92 frames, too many to be kept in a context of {least - 1}.*that works is {least}"
    ):
        Session(roomy, context=least - 1).prepare(voice=voice, text=GOLDEN_TEXT)
    assert Session(roomy, context=least).prepare(voice=voice, text=GOLDEN_TEXT).tensors[KEPT_NAME] == 91
    with pytest.raises(PromptError, match="the least that works is 117 .and this model has 40.*published window"):
        Session(golden).prepare(voice=voice, text=GOLDEN_TEXT)
    for other in (voice_from_file(GOLDEN_FOLDER / "voices" / "VOICE.pt", config=golden.config), None):
        with pytest.raises(PromptError, match="the least that works"):
            Session(roomy, context=60).prepare(voice=other, text=GOLDEN_TEXT * 2)
    with pytest.raises(ConfigError, match="'forever'; persona and published are allowed"):
        Session(golden, window="forever")


def test_each_window_has_prompts_of_its_own_and_the_voice_together(roomy, voice, tmp_path):
    prompts = {}
    for window in ("persona", "published", "persona"):
        session = Session(roomy, window=window, snapshot_folder=tmp_path)
        prompts[window] = session.prepare(voice=voice, text=GOLDEN_TEXT)
    assert [int(prompt.tensors[KEPT_NAME]) for prompt in prompts.values()] == [91, 0]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_state_saved_before_anything_was_kept_still_opens(roomy, voice, tmp_path):
    session = Session(roomy)
    saved = session.voice_snapshot(voice)
    old = replace(saved, tensors={name: tensor for name, tensor in saved.tensors.items() if name != KEPT_NAME})
    save_snapshot(old, tmp_path / "me.safetensors", session.model_key)
    found = session.prepare(voice=voice_from_file(tmp_path / "me.safetensors"), text=GOLDEN_TEXT)
    spoken = Session(roomy).prepare(voice=voice, text=GOLDEN_TEXT)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in spoken.tensors.items())


@pytest.mark.parametrize("kept", [-1, 92, 200, 2**40])
def test_a_file_that_keeps_what_cannot_be_kept_is_refused(roomy, voice, tmp_path, kept):
    """It says where compiled code writes."""
    session = Session(roomy)
    good = session.prepare(voice=voice, text=GOLDEN_TEXT)
    forged = replace(good, tensors={**good.tensors, KEPT_NAME: torch.tensor(kept)})
    with pytest.raises(InputError, match=f"keeps {kept} of 91 frames in a context of 200"):
        session.engine.check(forged)
    save_snapshot(forged, tmp_path / "me.safetensors", session.model_key)
    with pytest.raises(PromptError, match="me.safetensors cannot be used"):
        read_snapshot(tmp_path / "me.safetensors", session.model_key, session.engine.check)
