"""Layers brought from host memory give what layers in place give."""

import copy

import pytest
import torch

from personaplex.engine.engine import Engine
from personaplex.engine.prediction import PlainPredictor
from personaplex.errors import InputError
from personaplex.messages import SamplingOptions
from personaplex.nn.linear import Linear
from personaplex.nn.streamed_layers import StreamedLayers, layers_that_fit
from personaplex.weights.load import load_model

FORMATS = ["float32", "bfloat16", "int8"]


def stream(model, kept):
    model.lm.temporal.layers = StreamedLayers(model.lm.temporal.layers, kept, "cpu")
    return model


def said(model, frames=12):
    """A conversation after a prompt: tokens and logits."""
    engine = Engine(
        model.config, model.lm, model.mimi, cache_dtype=model.cache_dtype, predictor=PlainPredictor(model.lm)
    )
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, 400, (20, 17), generator=generator)
    engine.prefill_frames(0, prompt)
    engine.set_sampling(0, SamplingOptions(seed=3))
    on = torch.ones(1, dtype=torch.bool)
    outs = [engine.step(torch.randn(1, 1920, generator=generator) * 0.3, on) for _ in range(frames)]
    return torch.cat([out.tokens for out in outs]), torch.cat([out.text_logits for out in outs])


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
@pytest.mark.parametrize("format", FORMATS)
def test_streamed_layers_compute_the_same(golden, format, kept):
    tokens, logits = said(load_model(golden.folder, format=format, device="cpu"))
    streamed = stream(load_model(golden.folder, format=format, device="cpu"), kept)
    have = said(streamed)
    assert torch.equal(have[0], tokens)
    # Some processors' products depend, in their last bits, on where in memory a matrix begins.
    torch.testing.assert_close(have[1], logits, atol=1e-3, rtol=0)
    assert (streamed.lm.temporal.layers.host_bytes == 0) == (kept == 3)


def test_int4_layers_are_streamed_in_rows(golden):
    plain = load_model(golden.folder, format="int4", device="cpu")
    for module in plain.lm.modules():
        if isinstance(module, Linear):
            module.use_row_layout_()
    streamed = stream(copy.deepcopy(plain), 1)
    assert torch.equal(said(streamed)[0], said(plain)[0])


def test_two_buffers_hold_all_streamed_layers(golden):
    layers = load_model(golden.folder, format="float32", device="cpu").lm.temporal.layers
    streamed = StreamedLayers(layers, 0, "cpu")
    first, second, third = (layer.in_proj.weight.data.data_ptr() for layer in streamed)
    assert first == third != second
    assert sum(1 for _ in streamed.stream()) == len(streamed) == 3


def test_looking_at_streamed_layers_copies_nothing(golden):
    layers = load_model(golden.folder, format="float32", device="cpu").lm.temporal.layers
    streamed = StreamedLayers(layers, 0, "cpu")
    weight = streamed[0].in_proj.weight.data
    weight.fill_(7)
    assert list(streamed) == list(layers)
    assert (weight == 7).all()
    assert next(iter(streamed.stream())) is streamed[0]
    assert not (weight == 7).all()


@pytest.mark.parametrize(("free", "fit"), [(1000, 10), (999, 7), (500, 3), (250, 0), (0, 0)])
def test_how_many_layers_stay(free, fit):
    assert layers_that_fit(100, 10, free) == fit


def test_layers_stay_in_place_on_a_cpu(golden):
    with pytest.raises(InputError, match="CPU"):
        load_model(golden.folder, format="float32", device="cpu", layers_on_gpu=1)
    with pytest.raises(InputError, match="0 to 3"):
        load_model(golden.folder, format="float32", device="cpu", layers_on_gpu=4)
