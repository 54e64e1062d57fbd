"""What only a GPU shows: graphs give what eager frames give, slots stay apart, snapshots go on, kernels agree.

Needs nothing of the other tests' set-up:

    python -m pytest --noconftest -m cuda tests/test_cuda.py tests/test_triton.py
"""

import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from personaplex.engine.engine import Engine
from personaplex.engine.prediction import PlainPredictor
from personaplex.messages import SamplingOptions
from personaplex.session.prompt_frames import PromptBuilder
from personaplex.text.prompt import prepare_prompt
from personaplex.text.tokenizer import TextTokenizer
from personaplex.weights.load import load_model, read_voice_pt

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that PyTorch can use"),
]

GOLDEN = Path(__file__).parent / "golden"
TEXT = "You work for First Neuron Bank and your name is Sanni."
PCM_TOLERANCE = 1e-3
FORMATS = ["float32", "bfloat16", "int8", "int4"]


@pytest.fixture(scope="module")
def models():
    loaded = {}

    def model(format):
        if format not in loaded:
            loaded[format] = load_model(GOLDEN, format=format, device="cuda")
        return loaded[format]

    return model


@pytest.fixture(scope="module")
def user():
    """The golden user's frames [60, 1920]."""
    with wave.open(str(GOLDEN / "user.wav")) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    return torch.from_numpy(np.pad(pcm, (0, -len(pcm) % 1920))).view(-1, 1920)


def make(model, slots=1, *, graphs=True, plain=False):
    predictor = PlainPredictor(model.lm) if plain else None
    return Engine(
        model.config, model.lm, model.mimi, slots=slots, device="cuda", cache_dtype=model.cache_dtype,
        predictor=predictor, graphs=graphs,
    )  # fmt: skip


def begin(engine, model, row, options):
    """The golden prompt with the published voice file."""
    voice = read_voice_pt(GOLDEN / "voices" / "VOICE.pt", model.config)
    tokens = prepare_prompt(TEXT, TextTokenizer(model.tokenizer_path), 200, truncate=False).tokens
    engine.reset(row)
    engine.prefill_embeddings(row, voice.embeddings[:, 0, 0], voice.cache[0])
    engine.prefill_frames(row, PromptBuilder(model.config).role(tokens))
    engine.reset_codec(row)
    engine.set_sampling(row, options)


def talk(engine, row, frames):
    """(tokens [17, T], pcm [T, 1920]) of one slot alone."""
    active = torch.arange(engine.slots) == row
    outs = [engine.step(frame.expand(engine.slots, -1), active) for frame in frames]
    return torch.stack([o.tokens[row].cpu() for o in outs], 1), torch.stack([o.pcm[row].cpu() for o in outs])


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "kernels"])
@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
@pytest.mark.parametrize("slots", [1, 3])
def test_golden_tokens_in_float32(models, user, slots, graphs, plain):
    model = models("float32")
    engine = make(model, slots, graphs=graphs, plain=plain)
    begin(engine, model, slots - 1, SamplingOptions(greedy=True))
    tokens, _ = talk(engine, slots - 1, user)
    assert torch.equal(tokens.int(), load_file(GOLDEN / "expected.safetensors")["pt_voice.tokens"])


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "kernels"])
@pytest.mark.parametrize("format", FORMATS)
def test_graphs_give_what_eager_frames_give(models, user, format, plain):
    """The same kernels on the same numbers: token for token, in every format, sampled."""
    model, found = models(format), []
    for graphs in (False, True):
        engine = make(model, graphs=graphs, plain=plain)
        begin(engine, model, 0, SamplingOptions(seed=5))
        found.append(talk(engine, 0, user))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], atol=PCM_TOLERANCE, rtol=0)


@pytest.mark.parametrize("format", ["bfloat16", "int8", "int4"])
def test_kernels_agree_with_the_plain_path(models, user, format):
    """Greedy on random weights, fed the same tokens: nearly every choice is the same."""
    model, same, total = models(format), 0, 0
    # Of a model of its own: kernels would serve the plain path's quantised layers, too.
    plain = make(load_model(GOLDEN, format=format, device="cuda"), graphs=False, plain=True)
    engines = [plain, make(model, graphs=False)]
    for engine in engines:
        begin(engine, model, 0, SamplingOptions(greedy=True))
    known = torch.randint(0, 400, (40, 17), generator=torch.Generator().manual_seed(0))
    for column in known:
        outs = [engine.step_tokens(column[None], torch.ones(1, dtype=torch.bool)) for engine in engines]
        left, right = (torch.cat([o.text_logits.argmax(-1), o.audio_logits.argmax(-1)[0]]) for o in outs)
        same, total = same + int((left == right).sum()), total + len(left)
        distance = (outs[0].text_logits - outs[1].text_logits).norm() / outs[0].text_logits.norm()
        assert distance < 0.05
    assert same / total > 0.9


def test_slots_stay_apart_and_buckets_agree(models, user):
    """A conversation is the same alone, in another slot, and with others who come and go."""
    model = models("float32")
    engine = make(model, 6)
    begin(engine, model, 0, SamplingOptions(seed=1))
    alone, _ = talk(engine, 0, user[:30])
    for row in range(6):
        begin(engine, model, row, SamplingOptions(seed=1 if row == 4 else 10 + row))
    others = engine.export(3)
    beside = []
    for tick, frame in enumerate(user[:30]):
        active = torch.tensor([tick % 2 == 0, tick % 3 == 0, False, False, True, tick > 20])
        beside.append(engine.step(frame.expand(6, -1), active).tokens[4])
    assert torch.equal(torch.stack(beside, 1), alone)
    assert len(engine.run_frame.slot_buckets) == 4
    after = engine.export(3)
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in others.tensors.items())


@pytest.mark.parametrize("format", ["float32", "bfloat16"])
def test_a_snapshot_goes_on_in_another_slot(models, user, format):
    model = models(format)
    engine = make(model, 4)
    begin(engine, model, 0, SamplingOptions(seed=2))
    talk(engine, 0, user[:10])
    snapshot = engine.export(0)
    before, pcm = talk(engine, 0, user[10:40])
    engine.load(3, snapshot)
    again, pcm_again = talk(engine, 3, user[10:40])
    assert torch.equal(before, again)
    torch.testing.assert_close(pcm, pcm_again, atol=PCM_TOLERANCE, rtol=0)


def test_sampling_options_change_without_a_new_graph(models, user):
    model = models("float32")
    engine = make(model)
    found = []
    for options in (
        SamplingOptions(seed=1),
        SamplingOptions(seed=1, top_k_text=1, top_k_audio=1),
        SamplingOptions(greedy=True),
    ):
        begin(engine, model, 0, options)
        found.append(talk(engine, 0, user[:20])[0])
        graphs = dict(engine.run_frame._graphs)
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[0], found[1])
    assert len(graphs) == 1


def test_a_frame_waits_for_the_device_once(models, user):
    """After the first frames no call but the last synchronises."""
    model = models("float32")
    engine = make(model)
    begin(engine, model, 0, SamplingOptions(seed=1))
    talk(engine, 0, user[:3])
    torch.cuda.set_sync_debug_mode("error")
    try:
        talk(engine, 0, user[3:8])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kept", [0, 1])
def test_streamed_layers_give_the_same_tokens(models, user, kept):
    model = load_model(GOLDEN, format="float32", device="cuda", layers_on_gpu=kept)
    for graphs in (False, True):
        engine = make(model, graphs=graphs)
        begin(engine, model, 0, SamplingOptions(greedy=True))
        tokens, _ = talk(engine, 0, user)
        assert torch.equal(tokens.int(), load_file(GOLDEN / "expected.safetensors")["pt_voice.tokens"])
