"""The codec as a stream: however a signal is cut into frames, the answer is the same."""

import pytest
import torch

from personaplex.models.mimi import CodecTransformer
from personaplex.nn.conv import StreamingConv1d, StreamingConvTranspose1d

ON = torch.ones(1, dtype=torch.bool)


def fill(module, seed=0):
    """Give a module that has no memory yet random weights."""
    generator = torch.Generator().manual_seed(seed)
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            value = torch.randn(parameter.shape, generator=generator) * 0.2
            setattr(owner, name, torch.nn.Parameter(value, requires_grad=False))
    return module


def whole_and_stream(layer, x, cuts):
    whole = layer(x, layer.initial_state(1, "cpu"), ON)
    state = layer.initial_state(1, "cpu")
    return whole, torch.cat([layer(part, state, ON) for part in x.split(cuts, dim=2)], dim=2)


@pytest.mark.parametrize("repeat_first", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 1), (3, 1), (1, 1), (4, 2), (12, 6)])
def test_convolution_stream_equals_whole(kernel, stride, repeat_first):
    layer = fill(StreamingConv1d(3, 5, kernel, stride=stride, repeat_first=repeat_first))
    x = torch.randn(1, 3, 10 * stride, generator=torch.Generator().manual_seed(1)) + 2
    whole, stream = whole_and_stream(layer, x, [stride, 4 * stride, 2 * stride, 3 * stride])
    torch.testing.assert_close(stream, whole)
    left = x[:, :, :1].expand(-1, -1, kernel - stride) if repeat_first else torch.zeros(1, 3, kernel - stride)
    plain = torch.nn.functional.conv1d(torch.cat([left, x], 2), layer.weight, layer.bias, stride=stride)
    torch.testing.assert_close(whole, plain)


@pytest.mark.parametrize(("groups", "bias"), [(1, True), (4, False)])
def test_transposed_convolution_adds_its_bias_once(groups, bias):
    layer = fill(StreamingConvTranspose1d(4, 4, 8, stride=4, groups=groups, bias=bias))
    x = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(1))
    whole, stream = whole_and_stream(layer, x, [1, 1, 5, 2])
    torch.testing.assert_close(stream, whole)
    plain = torch.nn.functional.conv_transpose1d(x, layer.weight, layer.bias, stride=4, groups=groups)
    torch.testing.assert_close(whole, plain[:, :, :36])


def test_codec_transformer_stream_equals_whole_past_its_window(golden):
    layer = fill(CodecTransformer(golden.config.mimi.transformer, 2))
    x = torch.randn(1, 120, 32, generator=torch.Generator().manual_seed(1))
    whole = layer(x, layer.initial_state(1, "cpu"), ON)
    for cuts in ([2] * 60, [2, 50, 24, 44]):
        state = layer.initial_state(1, "cpu")
        stream = torch.cat([layer(part, state, ON) for part in x.split(cuts, dim=1)], dim=1)
        torch.testing.assert_close(stream, whole, atol=1e-5, rtol=1e-5)


def test_codec_stream_equals_whole(golden):
    mimi = golden.mimi
    pcm = torch.randn(1, 40 * 1920, generator=torch.Generator().manual_seed(2)) * 0.2
    codes = mimi.encode(pcm, mimi.encoder_state(1), ON)
    state = mimi.encoder_state(1)
    assert torch.equal(torch.cat([mimi.encode(f, state, ON) for f in pcm.split(1920, 1)], 2), codes)
    whole = mimi.decode(codes, mimi.decoder_state(1), ON)
    state = mimi.decoder_state(1)
    stream = torch.cat([mimi.decode(c, state, ON) for c in codes.split(1, 2)], 1)
    torch.testing.assert_close(stream, whole, atol=1e-5, rtol=0)


def test_an_inactive_codec_slot_keeps_its_state(golden):
    mimi = golden.mimi
    pcm = torch.randn(2, 1920, generator=torch.Generator().manual_seed(3))
    encoder, decoder = mimi.encoder_state(2), mimi.decoder_state(2)
    codes = mimi.encode(pcm, encoder, torch.tensor([True, True]))
    mimi.decode(codes, decoder, torch.tensor([True, True]))
    before = [leaf.tensor[0].clone() for state in (encoder, decoder) for leaf in state.leaves()]
    codes = mimi.encode(pcm * 2, encoder, torch.tensor([False, True]))
    mimi.decode(codes, decoder, torch.tensor([False, True]))
    after = [leaf.tensor[0] for state in (encoder, decoder) for leaf in state.leaves()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
