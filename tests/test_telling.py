"""Text told in the middle of a conversation: as the model's authors' code forces it, and kept on every path."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
import torch
from conftest import GOLDEN_FOLDER, GOLDEN_TEXT
from safetensors.torch import load_file

from personaplex.engine.backends.cpu_predictor import NativePredictor
from personaplex.engine.backends.cuda_graphs import FrameGraphs
from personaplex.engine.columns import FrameClock, FrameState
from personaplex.engine.engine import DRAWS_PER_FRAME, Engine
from personaplex.engine.prediction import PlainPredictor
from personaplex.engine.telling import HELD_NAME, KEPT_NAME, LAG_NAME
from personaplex.errors import InputError, PromptError
from personaplex.messages import SamplingOptions
from personaplex.native.library import native_library
from personaplex.nn.layers import apply_rope, rope_angles
from personaplex.personas.voices import voice_from_file
from personaplex.session.session import Session
from personaplex.text.prompt import wrap_system_tags

TOLD = {10: "The pool is closed today.", 35: "Dinner is at 8."}
"""What the authors' code was told, by the frame of the user before which it was."""

GREEDY = SamplingOptions(greedy=True)


@pytest.fixture(scope="module")
def user():
    """The user's recording as frames, [60, 1920] float32."""
    pcm, _ = sf.read(GOLDEN_FOLDER / "user.wav", dtype="float32")
    return np.pad(pcm, (0, -len(pcm) % 1920)).reshape(-1, 1920)


@pytest.fixture(scope="module")
def roomy(golden):
    """The golden model with a context that holds the prompt, the conversation and all that is told: 217 frames."""
    return replace(golden, config=replace(golden.config, lm=replace(golden.config.lm, context=240)))


@pytest.fixture(scope="module")
def authors():
    """Tokens of the authors' LMGen on the golden checkpoint with VOICE.pt, greedy, and which calls were told ones.

    Told: ``_step_text_prompt`` of ``step_system_prompts``, called between two frames of the user with other tokens.
    ``published`` has the golden context of 40 frames, ``roomy`` one of 240.
    """
    return load_file(GOLDEN_FOLDER / "told.safetensors")


def without_told(tokens, told):
    """The frames [17, T] that were said: the first call of a text finishes the frame before it, the next ones return
    the text, the last of it in the first call after.
    """
    told = told.tolist()
    before = [False, *told]
    return torch.stack([tokens[:, n] for n in range(len(told)) if not before[n]], dim=1)


def converse(model, user, window, tells=TOLD, seed=None):
    """The conversation with VOICE.pt: outputs of each step."""
    session = Session(model, window=window)
    voice = voice_from_file(GOLDEN_FOLDER / "voices" / "VOICE.pt", config=model.config)
    options = GREEDY if seed is None else SamplingOptions(seed=seed)
    outputs, left = [], []
    with session.start(session.prepare(voice=voice, text=GOLDEN_TEXT), options) as conversation:
        for number, frame in enumerate(user):
            if number in tells:
                left.append(conversation.tell(tells[number]))
            outputs.append(conversation.step(frame))
    return outputs, left


@pytest.mark.parametrize(
    ("window", "context"), [("published", "published"), ("published", "roomy"), ("persona", "roomy")]
)
def test_what_is_said_is_what_the_authors_code_says(golden, roomy, user, authors, window, context):
    model = roomy if context == "roomy" else golden
    outputs, left = converse(model, user, window)
    wanted = without_told(authors[f"{context}.tokens"], authors[f"{context}.told"])
    assert torch.equal(torch.from_numpy(np.stack([out.tokens for out in outputs], axis=1)).int(), wanted)
    assert left == [200 - 37, 200 - 37 - 28]
    silent, _ = converse(model, user, window, tells={})
    assert any((out.tokens != other.tokens).any() for out, other in zip(outputs, silent, strict=True))


# --- what is kept, and where it is met


CONTEXT, PROMPT, ON = 60, 9, torch.ones(1, dtype=torch.bool)
SPANS = ((14, 19), (60, 64), (64, 66), (67, 68))
"""Told frames of a stream: before its window is full, after that, two in a row, and a single one."""
FRAMES = 150
needs_code = pytest.mark.skipif(native_library() is None, reason="there is no compiled code here")
QUICK = NativePredictor if native_library() is not None else PlainPredictor


@pytest.fixture(scope="module")
def small(golden):
    """The golden model with a window of 60 frames."""
    return replace(golden, config=replace(golden.config, lm=replace(golden.config.lm, context=CONTEXT)))


def known_frames(count, seed=0):
    """[count, 17] int64: random known tokens."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.randint(0, 400, (count, 17), generator=generator)
    known[:, 1:] = torch.randint(0, 2048, (count, 16), generator=generator)
    return known


def read_columns(config, frames):
    """The columns that the temporal transformer reads in the calls with ``frames``, all known: [N − 1, 17]."""
    return FrameClock(config.lm).force(FrameState.empty(1, config.lm, "cpu"), frames)


def defined(temporal, x, spans, context):
    """Text logits [T, text_card] of embeddings x [1, T, dim], written down as the docstring of ``attention`` has it."""
    count = x.shape[1]
    seen, distance = torch.zeros(count, count, dtype=torch.bool), torch.zeros(count, count, dtype=torch.int64)
    for query in range(count):
        told = [key for first, end in spans if end <= query for key in range(first, end)]
        kept = [*range(min(PROMPT, query + 1)), *told]
        others = sorted(set(range(query + 1)) - set(kept))
        for key in others[-(context - 1 - len(kept)) :]:
            seen[query, key], distance[query, key] = True, query - key
        for entry, key in enumerate(kept):
            seen[query, key], distance[query, key] = True, min(query - key, context - 2 - entry)
    for layer in temporal.layers:
        query, key, value = layer.project(x)
        cos, sin = rope_angles(distance.reshape(1, -1), temporal.config.head_dim, temporal.config.max_period)
        pairs = query[:, :, :, None].expand(-1, -1, -1, count, -1).flatten(2, 3)
        turned = apply_rope(pairs, cos, sin).unflatten(2, (count, count))  # each query for each key
        scores = (turned * key[:, :, None]).sum(-1) * temporal.config.head_dim**-0.5
        x = layer.finish(x, scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value)
    return temporal.text_linear(temporal.out_norm(x))[0]


def engine_of(model, predictor=PlainPredictor, slots=1, **options):
    return Engine(model.config, model.lm, model.mimi, slots=slots, predictor=predictor(model.lm), **options)


def begin(engine, row, frames, keep=True):
    engine.reset(row)
    engine.prefill_frames(row, frames[: PROMPT + 1])
    if keep:
        engine.keep(row)


def go_on(engine, row, frames, spans, first, last):
    """Calls ``first`` … ``last − 1``: text logits [n, text_card] of those that were steps, and their numbers."""
    found, calls, active, call = [], [], torch.arange(engine.slots) == row, first
    while call < last:
        span = next((span for span in spans if span[0] == call), None)
        if span is not None:
            engine.tell(row, frames[slice(*span)])
            call = span[1]
            continue
        out = engine.step_tokens(frames[call].expand(engine.slots, -1), active)
        found.append(out.text_logits[row].clone())
        calls.append(call)
        call += 1
    return torch.stack(found), torch.tensor(calls)


@pytest.fixture(scope="module")
def stream(small):
    """Frames of a stream, the columns' embeddings, and what is defined for them."""
    frames = known_frames(FRAMES)
    with torch.inference_mode():
        x = small.lm.temporal.embed(read_columns(small.config, frames)[None], torch.float32)
        return frames, defined(small.lm.temporal, x, SPANS, CONTEXT)


@pytest.mark.parametrize("predictor", [PlainPredictor, pytest.param(NativePredictor, marks=needs_code)])
def test_told_text_stays_and_is_met_as_defined(small, stream, predictor):
    """Before the window is full and long after; call t reads column t − 1."""
    frames, wanted = stream
    engine = engine_of(small, predictor)
    begin(engine, 0, frames)
    found, calls = go_on(engine, 0, frames, SPANS, PROMPT + 1, FRAMES)
    torch.testing.assert_close(found, wanted[calls - 1], atol=3e-4, rtol=0)
    told = sum(end - first for first, end in SPANS)
    temporal, state = engine.state.temporal, engine.state.frames
    assert temporal.kept.tolist() == temporal.held.tolist() == [PROMPT + told] and state.told.tolist() == [told]


def test_each_rule_of_the_definition_shows(small, stream):
    """Without the text kept, or met at another distance, the logits are others: the comparison above can fail."""
    frames, wanted = stream
    with torch.inference_mode():
        x = small.lm.temporal.embed(read_columns(small.config, frames)[None], torch.float32)
        forgotten = defined(small.lm.temporal, x, (), CONTEXT)
    assert (forgotten[90:] - wanted[90:]).abs().amax(1).min() > 1e-3
    engine = engine_of(small, QUICK)
    begin(engine, 0, frames)
    engine._told.before_frame = lambda row, position: None  # never held
    engine._told.unchanged_for = lambda row, position: 10**6
    found, calls = go_on(engine, 0, frames, SPANS, PROMPT + 1, FRAMES)
    assert (found - wanted[calls - 1])[-20:].abs().amax(1).min() > 1e-3


@needs_code
@pytest.mark.parametrize(
    "cache_dtype", [torch.float32, torch.bfloat16, torch.int8], ids=["float32", "bfloat16", "int8"]
)
def test_compiled_code_equals_the_operators(small, cache_dtype):
    """Three slots with prompts and texts of their own, one that forgets them; told ones move, the others do not."""
    plain, compiled = (engine_of(small, kind, 3, cache_dtype=cache_dtype) for kind in (PlainPredictor, NativePredictor))
    for engine in (plain, compiled):
        for row in range(3):
            begin(engine, row, known_frames(30, row)[row:], keep=row != 2)
    limit = 5e-4 if cache_dtype is torch.float32 else 5e-2
    for tick in range(90):
        if tick in (3, 40, 41, 70):
            for row in range(3 if tick == 40 else 2):
                before = [leaf.tensor[2 - row].clone() for leaf in plain.state.leaves()]
                for engine in (plain, compiled):
                    engine.tell(row, known_frames(3 + row, tick))
                assert row == 1 or all(
                    torch.equal(leaf.tensor[2 - row], was)
                    for leaf, was in zip(plain.state.leaves(), before, strict=True)
                )
        known = known_frames(3, 100 + tick)
        moves = torch.tensor([tick % 4 != 3, tick > 5, True])
        left, right = (engine.step_tokens(known, moves) for engine in (plain, compiled))
        assert torch.equal(left.valid, right.valid)
        torch.testing.assert_close(right.text_logits[moves], left.text_logits[moves], atol=limit, rtol=0)
    assert plain.state.temporal.kept.tolist() == compiled.state.temporal.kept.tolist() == [9 + 12, 9 + 16, 0]
    assert plain.state.frames.told.tolist() == [12, 16, 5]


def test_a_slot_that_is_told_something_equals_one_alone(small, stream):
    frames, _ = stream
    alone, together = engine_of(small, QUICK), engine_of(small, QUICK, 3)
    begin(alone, 0, frames)
    for row in range(3):
        begin(together, row, frames if row == 1 else known_frames(30, row))
    found, want = go_on(together, 1, frames, SPANS, PROMPT + 1, 90), go_on(alone, 0, frames, SPANS, PROMPT + 1, 90)
    assert torch.equal(found[0], want[0])


@pytest.mark.parametrize("at", [19, 20, 66, 69, 80, 110])
def test_a_snapshot_goes_on_bit_identically_with_what_it_was_told(small, stream, at):
    """Just told, not kept yet; kept, not held yet; held."""
    frames, _ = stream
    engine = engine_of(small, QUICK, slots=2)
    begin(engine, 0, frames)
    go_on(engine, 0, frames, SPANS, PROMPT + 1, at)
    snapshot = engine.export(0)
    engine.check(snapshot)
    want, _ = go_on(engine, 0, frames, SPANS, at, 125)
    engine.load(1, snapshot)
    found, _ = go_on(engine, 1, frames, SPANS, at, 125)
    assert torch.equal(found, want)
    engine.reset(1)
    assert engine.state.frames.told.tolist() == [12, 0] and not engine.state.temporal.lag[1].any()


def test_addresses_stay_and_a_recorded_frame_goes_on(small):
    """A CUDA graph replays on the state's addresses; here what it records runs eagerly."""

    class Replay:
        def __init__(self, frame):
            self.frame = frame

        def warm_up(self, work):
            work(lambda call: call)

        def record(self, work):
            out = work(lambda call: call)

            def replay():
                new = work(lambda call: call)
                for name in ("text", "tokens", "valid", "pcm"):
                    getattr(out, name).copy_(getattr(new, name))

            return replay, out

        def wait(self):
            pass

    def run(graphs):
        engine = engine_of(small, QUICK)
        if graphs:
            engine.run_frame = FrameGraphs(
                engine.frame, slots=1, context=CONTEXT, needs_span=False, frame_samples=1920, draws=DRAWS_PER_FRAME,
                streams=17, device="cpu", capture=Replay(engine.frame),
            )  # fmt: skip
        begin(engine, 0, known_frames(30))
        engine.set_sampling(0, GREEDY)
        addresses = [leaf.tensor.data_ptr() for leaf in engine.state.leaves()]
        tokens = []
        for tick in range(60):
            if tick in (5, 35):
                engine.tell(0, known_frames(4, tick))
            out = engine.step(torch.full((1, 1920), 0.01 * (tick % 7)), ON)
            assert bool(out.valid[0]) is (tick not in (5, 35)), "the last told frame is not played"
            tokens.append(out.tokens[0].clone())
        assert addresses == [leaf.tensor.data_ptr() for leaf in engine.state.leaves()]
        return torch.stack(tokens)

    assert torch.equal(run(graphs=True), run(graphs=False))


# --- limits and files


def test_more_than_200_tokens_are_refused_with_the_count_and_nothing_moves(roomy, user):
    session = Session(roomy, window="published")
    with session.start(session.prepare(voice=None, text=GOLDEN_TEXT), GREEDY) as conversation:
        conversation.step(user[0])
        long = "The pool is closed today. " * 9
        count = len(session.tokenizer.encode(wrap_system_tags(long)))
        before = session.engine.export(0)
        with pytest.raises(PromptError, match=f"has {count} tokens with its tags; 200 are allowed.*shorten it to 200"):
            conversation.tell(long)
        for empty in ("", "  ", "<system> <system>"):
            with pytest.raises(PromptError, match="nothing to tell"):
                conversation.tell(empty)
        assert all(torch.equal(t, before.tensors[name]) for name, t in session.engine.export(0).tensors.items())
        left = 200
        while left >= 37:
            assert conversation.tell("The pool is closed today.") == left - 37
            left -= 37
        with pytest.raises(PromptError, match=f"37 tokens.*and 185 were told before: shorten it to {left}"):
            conversation.tell("The pool is closed today.")
        with pytest.raises(InputError, match="37 frames of text cannot be told after 185; 200 are allowed"):
            session.engine.tell(0, known_frames(37))
    with pytest.raises(InputError, match="closed"):
        conversation.tell("Dinner is at 8.")


def test_text_that_leaves_no_room_for_the_conversation_is_refused(roomy, user):
    """The prompt takes 91 entries; 25 are left for the conversation."""
    session = Session(roomy, context=91 + 37 + 25)
    voice = voice_from_file(GOLDEN_FOLDER / "voices" / "VOICE.pt", config=roomy.config)
    with session.start(session.prepare(voice=voice, text=GOLDEN_TEXT), GREEDY) as conversation:
        assert conversation.tell("The pool is closed today.") == 163
        for _ in range(2):  # told just now, and kept
            with pytest.raises(
                PromptError, match="takes 28 frames, and a context of 153 keeps 0 more.*128 of the prompt"
            ):
                conversation.tell("Dinner is at 8.")
            conversation.step(user[0])
        with pytest.raises(InputError, match="28 frames of text cannot be kept beside 128 in a context of 153; 0 more"):
            session.engine.tell(0, known_frames(28))


def test_the_sound_goes_on_without_a_gap_and_without_the_told_frames(roomy, user):
    """As many frames come out as go in, and decoded alone they are the same sound."""
    outputs, _ = converse(roomy, user[:24], "persona")
    decoder = roomy.mimi.decoder_state(1)
    for out in outputs:
        codes = torch.from_numpy(out.tokens[1:9])[None, :, None]
        wanted = roomy.mimi.decode(codes, decoder, ON)[0]
        torch.testing.assert_close(torch.from_numpy(out.pcm), wanted, atol=1e-4, rtol=0)


def test_a_seed_gives_the_same_conversation_again(roomy, user):
    first, second = (converse(roomy, user[:30], "persona", seed=7)[0] for _ in range(2))
    assert all((a.tokens == b.tokens).all() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("name", "value"), [("frames.told", 201), ("frames.told", -1), ("frames.fresh", 8), (HELD_NAME, 2), (HELD_NAME, 99)]
)
def test_a_file_that_was_told_what_cannot_be_is_refused(small, stream, name, value):
    frames, _ = stream
    engine = engine_of(small)
    begin(engine, 0, frames)
    go_on(engine, 0, frames, SPANS, PROMPT + 1, 30)
    good = engine.export(0)
    engine.check(good)
    with pytest.raises(InputError, match="make it again"):
        engine.check(replace(good, tensors={**good.tensors, name: torch.tensor(value)}))
    for lag in (-1, 2**40):
        lags = good.tensors[LAG_NAME].clone()
        lags[2] = lag
        with pytest.raises(InputError, match="make it again"):
            engine.check(replace(good, tensors={**good.tensors, LAG_NAME: lags}))
    assert int(good.tensors[KEPT_NAME]) == PROMPT + 5
