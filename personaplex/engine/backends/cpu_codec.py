"""The codec's frames in compiled code, on the CPU: ``cpp/codec.cpp``.

It computes what ``Mimi.encode`` and ``Mimi.decode`` do, in float32, one frame at a time and for the slots that
move only; recordings of many frames go through ``Mimi`` itself.

Weights that a frame uses for one or two steps only cost the time of reading them. They are kept a second time, as
int24 with a step for each row: as near as float32's own rounding of the sums, for 3/4 of the bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from personaplex.models.mimi import (
    CodecTransformer,
    DecoderState,
    EncoderState,
    Mimi,
    ResidualBlock,
    SEANet,
    SEANetState,
)
from personaplex.models.quantizer import ResidualQuantizer, SplitQuantizer
from personaplex.native.library import Bound, address
from personaplex.native.structures import (
    CODEC_NORMS,
    CODEC_PRODUCTS,
    CODEC_SCALES,
    Codebook,
    CodecLayer,
    CodecSpec,
    Convolution,
    MatrixKind,
    Stage,
)
from personaplex.nn.attention import TransformerState
from personaplex.nn.conv import ConvState, ConvTransposeState, StreamingConv1d, StreamingConvTranspose1d
from personaplex.nn.layers import rope_frequencies

FEW_STEPS = 2
"""Steps of a frame up to which a weight is kept as int24; fewer than a vector has lanes, as its convolutions need."""

_OVERREAD_BYTES = 16  # of cpp/vector.h, beyond the last number
_LEAST_EXPONENT = -90  # of a row's largest number; smaller ones become zero, and no step is a denormal


def int24(weight: Tensor) -> Tensor:
    """float32 [rows, …] → [rows · (4 + 3 · numbers of a row) + overread] uint8, as ``Row24`` of C++ reads it.

    A row begins with its step as float32, over 256; its integers follow, lowest byte first. The step is a power of
    two, so numbers with few digits stay exact; NaN for a row that is not finite. For little-endian machines, as all
    are that PyTorch's wheels are made for.
    """
    rows = weight.detach().flatten(1)
    top = rows.abs().amax(dim=1, keepdim=True)
    finite = top.isfinite()
    exponent = torch.frexp(torch.where(finite, top, 0.0)).exponent.clamp(min=_LEAST_EXPONENT) - 23
    step = torch.ldexp(torch.ones_like(top), exponent)
    whole = (torch.where(finite, rows, 0.0) / step).round().clamp(max=2**23 - 1).to(torch.int32)
    numbers = whole.view(torch.uint8).reshape(*rows.shape, 4)[..., :3].flatten(1)
    begins = torch.where(finite, step / 256, torch.nan).view(torch.uint8)
    return torch.cat([torch.cat([begins, numbers], dim=1).flatten(), numbers.new_zeros(_OVERREAD_BYTES)])


class NativeCodec:
    """A codec's weights bound to compiled code; the code must be there (``native_library``).

    Same calls as ``Mimi``'s. A state is bound at its first frame; the last one of each direction stays bound.
    """

    def __init__(self, mimi: Mimi):
        self._mimi = mimi
        self._encoder, self._decoder = _Direction("encode", mimi), _Direction("decode", mimi)

    def narrow_numbers(self, direction: str) -> int:
        """Number of int24 weights among those that a frame to "encode" or "decode" reads; 0 before the first frame."""
        return (self._encoder if direction == "encode" else self._decoder).narrow.count

    def encode(self, pcm: Tensor, state: EncoderState, active: Tensor) -> Tensor:
        """pcm: [B, F · frame_samples] float32 in −1..1, active: [B] bool → codes [B, 8, F] int64."""
        config = self._mimi.config
        if pcm.shape[1] != config.frame_samples:
            return self._mimi.encode(pcm, state, active)
        codes = torch.zeros(pcm.shape[0], config.num_codebooks, dtype=torch.int64)
        self._encoder.run(state, pcm.contiguous(), active, codes)
        return codes[:, :, None]

    def decode(self, codes: Tensor, state: DecoderState, active: Tensor) -> Tensor:
        """codes: [B, 8, F] int64 in 0..codebook_size − 1 → pcm [B, F · frame_samples] float32."""
        if codes.shape[2] != 1:
            return self._mimi.decode(codes, state, active)
        pcm = torch.zeros(codes.shape[0], self._mimi.config.frame_samples)
        self._decoder.run(state, codes[:, :, 0].contiguous(), active, pcm)
        return pcm


class _Direction:
    """Encoding or decoding: its int24 weights, and the state that is bound."""

    def __init__(self, name: str, mimi: Mimi) -> None:
        self._name, self._mimi, self.narrow = name, mimi, _Narrow()
        self._bound: _Bound | None = None

    def run(self, state: EncoderState | DecoderState, given: Tensor, active: Tensor, out: Tensor) -> None:
        """One frame from ``given`` into ``out``."""
        if self._bound is None or self._bound.state is not state:
            self._bound = _Bound(self._mimi, state, self.narrow)
        call = getattr(self._bound.library, f"personaplex_codec_{self._name}")
        call(self._bound.handle, *map(address, (given, active, out)), torch.get_num_threads())


class _Narrow:
    """int24 copies of weights, which must not change, by address; the weights are held, so that it stays theirs."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def count(self) -> int:
        """Number of values in all weights."""
        return sum(weight.numel() for weight, _ in self._copies.values())

    def of(self, weight: Tensor) -> Tensor:
        if weight.data_ptr() not in self._copies:
            self._copies[weight.data_ptr()] = weight, int24(weight)
        return self._copies[weight.data_ptr()][1]


class _Bound(Bound):
    """One direction of the codec and one state as the C++ side knows them."""

    def __init__(self, mimi: Mimi, state: EncoderState | DecoderState, narrow: _Narrow) -> None:
        super().__init__()
        self.state, self._mimi, self._narrow = state, mimi, narrow
        parts = (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest)
        if isinstance(state, EncoderState):
            resample = self._convolution(mimi.downsample, state.downsample, 1)
            networks, projections = (mimi.encoder, mimi.encoder_transformer), [part.input_proj for part in parts]
        else:
            resample = self._convolution(mimi.upsample, state.upsample, 1)
            networks, projections = (mimi.decoder, mimi.decoder_transformer), [part.output_proj for part in parts]
        plain = [projection.squeeze(2) for projection in projections]
        self.create("codec", self._spec(*networks, state.seanet, state.transformer, resample, plain))

    def _spec(
        self, seanet: SEANet, transformer: CodecTransformer, convs: SEANetState, state: TransformerState,
        resample: Convolution, projections: list[Tensor],
    ) -> CodecSpec:  # fmt: skip
        config, t = self._mimi.config, self._mimi.config.transformer
        length = config.frame_samples if seanet is self._mimi.encoder else transformer.steps_per_frame
        stages, books = self._stages(seanet, convs, length), self._books(self._mimi.quantizer)
        layers = [
            CodecLayer(
                *(self._weight(getattr(layer, name)) for name in CODEC_NORMS),
                *(self._few_steps_weight(getattr(layer, name)) for name in CODEC_PRODUCTS),
                *(self._weight(getattr(layer, name)) for name in CODEC_SCALES),
                self.keep(cache.keys), self.keep(cache.values),
            )
            for layer, cache in zip(transformer.layers, state.layers, strict=True)
        ]  # fmt: skip
        return CodecSpec(
            slots=state.slots, samples=config.frame_samples, dim=t.d_model, heads=t.num_heads,
            hidden=t.dim_feedforward, capacity=t.context, steps=transformer.steps_per_frame, layers=len(layers),
            stages=len(stages), codebooks=len(books), codebook_size=config.codebook_size,
            codebook_dim=config.codebook_dim, kind=MatrixKind.INT24,
            stage_list=self.array(Stage, stages), resample=resample, layer_list=self.array(CodecLayer, layers),
            frequencies=self.keep(rope_frequencies(t.d_model // t.num_heads, t.max_period)),
            position=self.keep(state.position), books=self.array(Codebook, books),
            projection_first=self._weight(projections[0]), projection_rest=self._weight(projections[1]),
        )  # fmt: skip

    def _stages(self, seanet: SEANet, state: SEANetState, length: int) -> list[Stage]:
        """``length``: how many steps a frame has at the SEANet's beginning."""
        stages: list[Stage] = []
        states = iter(state.convs)
        for index, layer in enumerate(seanet.in_order()):
            if isinstance(layer, ResidualBlock):
                convolutions = [self._convolution(conv, next(states), length) for conv in (layer.conv, layer.pointwise)]
                stages.append(Stage(*convolutions, 1, 1))
            elif isinstance(layer, StreamingConvTranspose1d):
                stages.append(Stage(self._convolution(layer, next(states), length), Convolution(), 0, int(index > 0)))
                length *= layer.stride
            else:
                length //= layer.stride
                stages.append(Stage(self._convolution(layer, next(states), length), Convolution(), 0, int(index > 0)))
        return stages

    def _convolution(
        self, conv: StreamingConv1d | StreamingConvTranspose1d, state: ConvState | ConvTransposeState, steps: int
    ) -> Convolution:
        """``steps``: how often a frame uses each weight."""
        shape, depthwise = conv.weight.shape, isinstance(conv, StreamingConvTranspose1d) and conv.groups > 1
        few = steps <= FEW_STEPS and not depthwise
        weight = self._few_steps_weight(conv.weight) if few else self._weight(conv.weight)
        bias = None if conv.bias is None else self._weight(conv.bias)
        kind = MatrixKind.INT24 if few else MatrixKind.FLOAT32
        if isinstance(conv, StreamingConvTranspose1d):
            assert isinstance(state, ConvTransposeState) and conv.groups in (1, conv.channels_out)
            return Convolution(
                weight, bias, self.keep(state.overlap), None,
                shape[0], conv.channels_out, shape[2], conv.stride, 1, int(depthwise), 0, kind,
            )  # fmt: skip
        assert isinstance(state, ConvState)
        return Convolution(
            weight, bias, self.keep(state.previous), self.keep(state.started),
            shape[1], shape[0], shape[2], conv.stride, 0, 0, int(conv.repeat_first), kind,
        )  # fmt: skip

    def _books(self, quantizer: SplitQuantizer) -> list[Codebook]:
        parts: list[ResidualQuantizer] = [quantizer.rvq_first, quantizer.rvq_rest]
        vectors = [book.vectors.detach() for part in parts for book in part.codebooks]
        return [Codebook(self._weight(v), self.keep(v.square().sum(dim=1))) for v in vectors]

    def _few_steps_weight(self, parameter: Tensor) -> int:
        return self.keep(self._narrow.of(parameter))

    def _weight(self, parameter: Tensor) -> int:
        return self.keep(parameter.detach().contiguous())
