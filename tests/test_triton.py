"""The Triton kernels against the plain path: on a CPU through Triton's interpreter, on a GPU as they are."""

import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
pytest.importorskip("triton", reason="Triton is not installed (Linux: pip install -r requirements-dev.txt)")

# ruff: noqa: E402
from personaplex.engine.backends.trial import why_not_trusted
from personaplex.engine.backends.triton_predictor import (
    DRAWS,
    KernelOptions,
    PromptKernel,
    Tile,
    TritonPredictor,
    why_not,
)
from personaplex.engine.engine import Engine
from personaplex.engine.prediction import PlainPredictor
from personaplex.messages import SamplingOptions
from personaplex.nn.attention import KeepingState, Kept, attend_step
from personaplex.nn.cache_rows import loaded as loaded_row
from personaplex.nn.cache_rows import stored
from personaplex.nn.layers import GatedFeedForward, RMSNorm, apply_rope, rope_angles
from personaplex.nn.linear import Linear
from personaplex.nn.packing import WeightFormat
from personaplex.nn.sampling import SamplerState, draw
from personaplex.weights.load import load_model

GOLDEN = Path(__file__).parent / "golden"
pytestmark = pytest.mark.cuda if torch.cuda.is_available() else []
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = list(WeightFormat)
FLOAT32, BFLOAT16, INT8, INT4 = FORMATS
BFLOAT16_ERROR = 2.0**-7
"""Two roundings to bfloat16; the interpreter rounds towards zero, a GPU to the nearest."""


@dataclass(frozen=True)
class Coarse(KernelOptions):
    """Few large programs: the interpreter takes its time for each, not for their size."""

    def tile(self, weight: Linear, gated: bool, one_slot: bool) -> Tile:
        return super().tile(weight, gated, one_slot) if DEVICE == "cuda" else Tile(2048, 128)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def tiny():
    """The golden checkpoint on the kernels' device, of one's own: kernels may repack weights."""
    return lambda format: load_model(GOLDEN, format=format.value, device=DEVICE)


def predictor(model, slots, context=40):
    return TritonPredictor(model.lm, slots=slots, context=context, device=DEVICE, options=Coarse())


def loaded(rows, columns, format):
    linear = Linear(columns, rows)
    linear.load_(torch.randn(rows, columns) / math.sqrt(columns), format, DEVICE)
    linear.use_row_layout_()
    return linear


def tolerance(format):
    return dict(atol=1e-4, rtol=1e-4) if format is FLOAT32 else dict(atol=0.03, rtol=2 * BFLOAT16_ERROR)


def difference(have, want):
    """‖have − want‖ / ‖want‖."""
    return float((have - want).norm() / want.norm())


def activations(*shape, format):
    return torch.randn(*shape, device=DEVICE, dtype=torch.float32 if format is FLOAT32 else torch.bfloat16)


@pytest.mark.parametrize("slots", [1, 5])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(70, 88), (128, 256)])
def test_a_product_with_a_norm_and_with_a_residual(tiny, format, slots, rows, columns):
    run, weight = predictor(tiny(FLOAT32), slots), loaded(rows, columns, format)
    x, residual = activations(slots, columns, format=format), activations(slots, rows, format=format)
    norm = RMSNorm(columns)
    norm.alpha = torch.nn.Parameter(torch.rand(1, 1, columns, device=DEVICE) + 0.5, requires_grad=False)
    limits = tolerance(format)
    torch.testing.assert_close(run.linear(x, weight), weight(x), **limits)
    torch.testing.assert_close(run.linear(x, weight, norm=norm), weight(norm(x)), **limits)
    torch.testing.assert_close(run.linear(x, weight, residual=residual), residual + weight(x), **limits)
    wide = torch.full((slots, 3, rows), 9.0, device=DEVICE)
    run.linear(x, weight, out=wide[:, 1])
    torch.testing.assert_close(wide[:, 1], weight(x).float(), **limits)
    assert (wide[:, ::2] == 9).all()


@pytest.mark.parametrize("format", [INT8, INT4])
def test_a_prompts_rows(format):
    weight, x = loaded(70, 88, format), activations(20, 88, format=format)
    torch.testing.assert_close(PromptKernel().multiply(x, weight.weight), weight(x), **tolerance(format))


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("format", FORMATS)
def test_a_gated_product(tiny, format, slots):
    block = GatedFeedForward(64, 90)
    block.linear_in, block.linear_out = loaded(180, 64, format), loaded(64, 90, format)
    x = activations(slots, 64, format=format)
    run = predictor(tiny(FLOAT32), slots)
    have = run.linear(run.linear(x, block.linear_in, gated=True), block.linear_out)
    torch.testing.assert_close(have, block(x), **tolerance(format))


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.int8)],
)
@pytest.mark.parametrize(
    ("context", "keeps"),
    [(40, "nothing"), (40, "a prompt"), (40, "told text, too"), (300, "told text, too")],  # one chunk, three chunks
)
def test_attention_over_the_ring_at_every_length(tiny, dtype, cache_dtype, context, keeps):
    """Empty, partly filled, full and wrapped rings side by side; a slot that does not move keeps its cache."""
    heads, width = 2, 8
    positions = [0, 1, 30, context - 2, context - 1, context, 2 * context + 17, context + 5]
    slots = len(positions)
    run = predictor(tiny(FLOAT32), slots, context)
    plain, fast = (KeepingState.empty(slots, 1, heads, context, width, cache_dtype, DEVICE) for _ in range(2))
    run._partial, run._stats = (t[:, :heads].contiguous() for t in (run._partial, run._stats))
    run._arrived = run._arrived[:, :heads].contiguous()
    for state in (plain, fast):
        state.position.copy_(torch.tensor(positions))
        if keeps != "nothing":
            state.kept.copy_(torch.tensor([0, 1, 30, 20, context - 4, 33, context // 2, 5]))
            state.held.copy_(state.kept if keeps == "a prompt" else torch.tensor([0, 0, 7, 20, 31, 32, 3, 4]))
    for ring in ("keys", "values"):
        noise = torch.randn(slots, heads, context, width).to(dtype)
        for row, position in enumerate(positions):
            noise[row, :, position:] = math.nan  # what was never written must not matter
        getattr(fast.layers[0], ring).copy_(stored(noise, cache_dtype))
        getattr(plain.layers[0], ring).copy_(stored(noise.nan_to_num(), cache_dtype))
    moves = torch.tensor([True] * (slots - 1) + [False], device=DEVICE)
    before = fast.layers[0].keys[-1].clone()
    qkv = activations(slots, 3 * heads * width, format=FLOAT32).to(dtype)
    at = plain.position[:, None]
    angles, held_angles = (rope_angles(seen_at, width, 10_000) for seen_at in (at, plain.held_position(at)))
    query, key, value = qkv.view(slots, 1, 3, heads, width).permute(2, 0, 3, 1, 4)
    want = attend_step(
        apply_rope(query, *angles), apply_rope(key, *angles), value, plain.layers[0], plain.position, moves, context,
        Kept(plain.kept, plain.held, apply_rope(query, *held_angles)),
    )  # fmt: skip
    for _ in range(2):  # the counters are back at zero
        have = run._attend(qkv, fast.layers[0], fast, moves, angles, held_angles)
    limits = dict(atol=1e-5, rtol=1e-5) if dtype is torch.float32 else dict(atol=0.02, rtol=2 * BFLOAT16_ERROR)
    torch.testing.assert_close(have[:-1], want.transpose(1, 2).flatten(1)[:-1], **limits)
    assert torch.equal(fast.layers[0].keys[-1], before)
    for row, position in enumerate(positions[:-1]):
        kept = int(fast.kept[row])
        written = kept + (position - kept) % (context - kept)
        for ring in ("keys", "values"):
            left, right = (
                loaded_row(getattr(state.layers[0], ring)[row, :, written], dtype) for state in (fast, plain)
            )
            torch.testing.assert_close(left, right, atol=1e-6, rtol=BFLOAT16_ERROR)
    assert not run._arrived.any()


def sampler(slots, temperature, top_k, greedy=False):
    state = SamplerState.empty(slots, DEVICE)
    options = SamplingOptions(temperature_audio=temperature, temperature_text=temperature, top_k_audio=top_k,
                              top_k_text=top_k, greedy=greedy)  # fmt: skip
    for row in range(slots):
        state.set_row(row, options)
    return state


def drawn(run, logits, state, uniform, forced):
    tokens = torch.zeros(len(logits), DRAWS, dtype=torch.int64, device=DEVICE)
    noise = torch.zeros(len(logits), DRAWS, device=DEVICE)
    noise[:, 3] = uniform
    embedding = torch.empty(len(logits), 16, device=DEVICE)
    run._draw(logits, (noise, state, forced, tokens), 3, 1, None, embedding)
    assert not tokens[:, [0, 1, 2, 4, 5, 6, 7, 8]].any()
    return tokens[:, 3]


@pytest.mark.parametrize(
    ("size", "top_k", "temperature"), [(400, 25, 0.7), (2048, 250, 0.8), (100, 250, 1.3), (9, 1, 1)]
)
def test_drawing_follows_the_same_distribution_function(tiny, size, top_k, temperature):
    slots = 24
    run, state = predictor(tiny(FLOAT32), slots), sampler(slots, temperature, top_k)
    logits = torch.randn(slots, size, device=DEVICE) * 3
    uniform = torch.linspace(0, 0.9999, slots, device=DEVICE)
    forced = torch.full((slots, 17), -2, dtype=torch.int64, device=DEVICE)
    want = draw(logits, uniform, state.temperature[:, 1], state.top_k[:, 1], state.greedy)
    assert torch.equal(drawn(run, logits, state, uniform, forced), want)
    assert torch.equal(drawn(run, logits, sampler(slots, 1, 1, greedy=True), uniform, forced), logits.argmax(-1))
    forced[:, 3] = torch.arange(slots)
    assert torch.equal(drawn(run, logits, state, uniform, forced), forced[:, 3])


@pytest.mark.parametrize("shift", [6, 0, -6])
def test_drawing_from_bfloat16_logits_of_either_sign(tiny, shift):
    slots = 24
    run, state = predictor(tiny(BFLOAT16), slots), sampler(slots, 0.8, 25)
    logits = (torch.randn(slots, 400, device=DEVICE) * 2 + shift).bfloat16().float()
    uniform = torch.linspace(0, 0.9999, slots, device=DEVICE)
    forced = torch.full((slots, 17), -2, dtype=torch.int64, device=DEVICE)
    want = draw(logits, uniform, state.temperature[:, 1], state.top_k[:, 1], state.greedy)
    found = drawn(run, logits, state, uniform, forced)
    assert torch.equal(logits.gather(1, found[:, None]), logits.gather(1, want[:, None]))  # equal ones change places


def test_equal_logits_share_their_place(tiny):
    """bfloat16 logits tie often: whichever comes first, each of them is drawn as often as it should be."""
    slots = 40
    run, state = predictor(tiny(BFLOAT16), slots), sampler(slots, 1.0, 3)
    logits = torch.tensor([0.0, 1.0, 2.0, 1.0, 1.0, -1.0], device=DEVICE).repeat(slots, 1)
    uniform = (torch.arange(slots, device=DEVICE) + 0.5) / slots
    forced = torch.full((slots, 17), -2, dtype=torch.int64, device=DEVICE)
    found = drawn(run, logits, state, uniform, forced)
    share = math.e / (2 + math.e)  # of the likeliest, among it and two of the three that are next
    assert (found == 2).sum() == round(slots * share)
    assert set(found.tolist()) == {1, 2, 3}
    assert torch.equal(found, found[found.argsort(stable=True)]) or (found[: (found == 2).sum()] == 2).all()


@pytest.mark.parametrize(("format", "slots"), [(FLOAT32, 1), (FLOAT32, 3), (BFLOAT16, 1), (INT8, 3), (INT4, 3)])
def test_a_frame_equals_the_plain_path(tiny, format, slots):
    model, other = tiny(format), tiny(format)  # kernels would serve the plain path's quantised layers, too
    state_of = dict(slots=slots, device=DEVICE, cache_dtype=model.cache_dtype)
    fast = Engine(model.config, model.lm, model.mimi, predictor=predictor(model, slots), **state_of)
    plain = Engine(other.config, other.lm, other.mimi, predictor=PlainPredictor(other.lm), **state_of)
    for engine in (plain, fast):
        for row in range(slots):
            engine.set_sampling(row, SamplingOptions(seed=row, greedy=row == 2))
            frames = torch.randint(0, 400, (38, 17), generator=torch.Generator().manual_seed(row))
            frames[:, 4] = -1  # embeds to zero
            engine.prefill_frames(row, frames[:12])
            if row == 0 and slots > 1:  # past the window, and with its first frames kept
                engine.keep(row)
                engine.prefill_frames(row, frames[:25])
                if format is FLOAT32:  # its first frame draws codes, which rounding may turn
                    engine.tell(row, frames[:3])  # kept after the next step
            engine.prefill_frames(row, frames[12:])
    active = torch.arange(slots) != 1
    known = torch.full((slots, 17), -2)
    known[:, 9:] = torch.randint(0, 2048, (slots, 8))
    if format is not FLOAT32:  # where rounding may turn a draw, and with it all that follows, both are told it
        known[:, 0] = 7
        known[:, 1:9] = torch.randint(0, 2048, (slots, 8))
    for _ in range(2 if format is FLOAT32 and slots > 1 else 1):
        left, right = plain.step_tokens(known, active), fast.step_tokens(known, active)
        allowed = 1e-5 if format is FLOAT32 else 0.08
        assert difference(right.text_logits[active], left.text_logits[active]) < allowed
        assert torch.equal(right.tokens[active], left.tokens[active])
        assert difference(right.audio_logits[active], left.audio_logits[active]) < allowed
    for have, want in zip(fast.state.temporal.leaves(), plain.state.temporal.leaves(), strict=True):
        if slots > 1:
            assert torch.equal(have.tensor[1], want.tensor[1])


@pytest.mark.parametrize(("slots", "cache_dtype"), [(1, torch.float32), (3, torch.float32), (1, torch.int8)])
def test_the_kernels_pass_their_trial(tiny, slots, cache_dtype):
    model = tiny(FLOAT32)
    assert why_not_trusted(predictor(model, slots), model.lm, cache_dtype, DEVICE, 40) is None


def test_what_the_kernels_cannot_run_is_said(tiny):
    lm = tiny(FLOAT32).lm
    assert why_not(lm, 1, torch.float32) is None
    assert "slots" in why_not(lm, 1000, torch.float32)
    assert why_not(lm, 1, torch.int8) is None
    assert "int16" in why_not(lm, 1, torch.int16)


@pytest.mark.parametrize("formats", ["bfloat16", pytest.param("float32,bfloat16,int8,int4", marks=pytest.mark.slow)])
def test_all_kernels_of_the_7b_compile_for_a_hopper_gpu(formats):
    """Without such a GPU, with the compiler that Triton brings; one that runs all the time must not spill."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, "-m", "tests.triton_compile", "--formats", formats, "--slots", "1,32"]
    for launch in ([], ["--dependent-launch"]) if "," in formats else (["--dependent-launch"],):
        done = subprocess.run(
            [*words, *launch],
            cwd=Path(__file__).parents[1],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert int(done.stdout.split()[0]) > 20
