"""The codec's frames in compiled code, on the CPU: ``cpp/codec.cpp``.

It computes what ``Mimi.encode`` and ``Mimi.decode`` do, in float32, one frame at a time and for the slots that
move only; recordings of many frames go through ``Mimi`` itself.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import POINTER, Structure, byref, c_int32, c_void_p, pointer

import torch
from torch import Tensor

from personaplex.attention import TransformerState
from personaplex.conv import ConvState, ConvTransposeState, StreamingConv1d, StreamingConvTranspose1d
from personaplex.layers import rope_frequencies
from personaplex.mimi import CodecTransformer, DecoderState, EncoderState, Mimi, ResidualBlock, SEANet, SEANetState
from personaplex.native import address, native_library
from personaplex.quantizer import ResidualQuantizer, SplitQuantizer


class _Convolution(Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("weight", "bias", "state", "started")],
        *[
            (name, c_int32)
            for name in ("channels_in", "channels_out", "kernel", "stride", "transposed", "depthwise", "repeat_first")
        ],
    ]


class _Stage(Structure):
    _fields_ = [
        ("first", _Convolution), ("second", _Convolution), ("residual", c_int32), ("activated", c_int32),
    ]  # fmt: skip


_LAYER_WEIGHTS = (
    "norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias", "in_proj_weight", "out_proj_weight",
    "linear1_weight", "linear2_weight", "scale_1", "scale_2",
)  # fmt: skip


class _Layer(Structure):
    _fields_ = [(name, c_void_p) for name in (*_LAYER_WEIGHTS, "keys", "values")]


class _Codebook(Structure):
    _fields_ = [("vectors", c_void_p), ("norms", c_void_p)]


_NUMBERS = (
    "slots", "samples", "dim", "heads", "hidden", "capacity", "steps", "layers", "stages", "codebooks",
    "codebook_size", "codebook_dim",
)  # fmt: skip


class _Spec(Structure):
    _fields_ = [
        *[(name, c_int32) for name in _NUMBERS],
        ("stage_list", POINTER(_Stage)), ("resample", _Convolution), ("layer_list", POINTER(_Layer)),
        ("frequencies", c_void_p), ("position", c_void_p), ("books", POINTER(_Codebook)),
        ("projection_first", c_void_p), ("projection_rest", c_void_p),
    ]  # fmt: skip


class NativeCodec:
    """A codec's weights bound to compiled code; the code must be there (``native_library``).

    Same calls as ``Mimi``'s. A state is bound at its first frame; one of each direction is kept.
    """

    def __init__(self, mimi: Mimi):
        self._mimi = mimi
        self._encoder: _Bound | None = None
        self._decoder: _Bound | None = None

    def encode(self, pcm: Tensor, state: EncoderState, active: Tensor) -> Tensor:
        """pcm: [B, F · frame_samples] float32 in −1..1, active: [B] bool → codes [B, 8, F] int64."""
        config = self._mimi.config
        if pcm.shape[1] != config.frame_samples:
            return self._mimi.encode(pcm, state, active)
        if self._encoder is None or self._encoder.state is not state:
            self._encoder = _Bound.encoder(self._mimi, state)
        codes = torch.zeros(pcm.shape[0], config.num_codebooks, dtype=torch.int64)
        self._encoder.run("encode", pcm.contiguous(), active, codes)
        return codes[:, :, None]

    def decode(self, codes: Tensor, state: DecoderState, active: Tensor) -> Tensor:
        """codes: [B, 8, F] int64 in 0..codebook_size − 1 → pcm [B, F · frame_samples] float32."""
        if codes.shape[2] != 1:
            return self._mimi.decode(codes, state, active)
        if self._decoder is None or self._decoder.state is not state:
            self._decoder = _Bound.decoder(self._mimi, state)
        pcm = torch.zeros(codes.shape[0], self._mimi.config.frame_samples)
        self._decoder.run("decode", codes[:, :, 0].contiguous(), active, pcm)
        return pcm


class _Bound:
    """One direction of the codec and one state as the C++ side knows them, and everything that it points to."""

    def __init__(self, mimi: Mimi, state: EncoderState | DecoderState):
        library = native_library()
        assert library is not None
        self.state, self._library = state, library
        self._mimi = mimi
        self._kept: list[object] = []

    @classmethod
    def encoder(cls, mimi: Mimi, state: EncoderState) -> _Bound:
        bound = cls(mimi, state)
        q = mimi.quantizer
        spec = bound._spec(
            mimi.encoder, state.seanet, mimi.encoder_transformer, state.transformer,
            bound._convolution(mimi.downsample, state.downsample),
            [part.input_proj.detach().squeeze(2) for part in (q.rvq_first, q.rvq_rest)],
        )  # fmt: skip
        return bound._create(spec)

    @classmethod
    def decoder(cls, mimi: Mimi, state: DecoderState) -> _Bound:
        bound = cls(mimi, state)
        q = mimi.quantizer
        spec = bound._spec(
            mimi.decoder, state.seanet, mimi.decoder_transformer, state.transformer,
            bound._convolution(mimi.upsample, state.upsample),
            [part.output_proj.detach().squeeze(2) for part in (q.rvq_first, q.rvq_rest)],
        )  # fmt: skip
        return bound._create(spec)

    def run(self, name: str, given: Tensor, active: Tensor, out: Tensor) -> None:
        call = self._library[f"personaplex_codec_{name}"]
        threads = c_int32(torch.get_num_threads())
        call(self._handle, *(c_void_p(address(tensor)) for tensor in (given, active, out)), threads)

    def _create(self, spec: _Spec) -> _Bound:
        self._handle = c_void_p(self._library.personaplex_codec_create(byref(spec)))
        weakref.finalize(self, self._library.personaplex_codec_destroy, self._handle)
        return self

    def _spec(
        self, seanet: SEANet, convs: SEANetState, transformer: CodecTransformer, state: TransformerState,
        resample: _Convolution, projections: list[Tensor],
    ) -> _Spec:  # fmt: skip
        config, t = self._mimi.config, self._mimi.config.transformer
        stages, books = self._stages(seanet, convs), self._books(self._mimi.quantizer)
        layers = [
            _Layer(
                *(self._keep(getattr(layer, name).detach()) for name in _LAYER_WEIGHTS),
                self._keep(cache.keys), self._keep(cache.values),
            )
            for layer, cache in zip(transformer.layers, state.layers, strict=True)
        ]  # fmt: skip
        return _Spec(
            slots=state.slots, samples=config.frame_samples, dim=t.d_model, heads=t.num_heads,
            hidden=t.dim_feedforward, capacity=t.context, steps=transformer.steps_per_frame, layers=len(layers),
            stages=len(stages), codebooks=len(books), codebook_size=config.codebook_size,
            codebook_dim=config.codebook_dim,
            stage_list=self._array(_Stage, stages), resample=resample, layer_list=self._array(_Layer, layers),
            frequencies=self._keep(rope_frequencies(t.d_model // t.num_heads, t.max_period)),
            position=self._keep(state.position), books=self._array(_Codebook, books),
            projection_first=self._keep(projections[0]), projection_rest=self._keep(projections[1]),
        )  # fmt: skip

    def _stages(self, seanet: SEANet, state: SEANetState) -> list[_Stage]:
        states, stages = iter(state.convs), []
        for index, layer in enumerate(seanet.layers.values()):
            if isinstance(layer, ResidualBlock):
                convolutions = [self._convolution(conv, next(states)) for conv in (layer.conv, layer.pointwise)]
                stages.append(_Stage(*convolutions, 1, 1))
            else:
                stages.append(_Stage(self._convolution(layer, next(states)), _Convolution(), 0, int(index > 0)))
        return stages

    def _convolution(
        self, conv: StreamingConv1d | StreamingConvTranspose1d, state: ConvState | ConvTransposeState
    ) -> _Convolution:
        weight = conv.weight.detach()
        bias = None if conv.bias is None else self._keep(conv.bias.detach())
        if isinstance(conv, StreamingConvTranspose1d):
            assert isinstance(state, ConvTransposeState) and conv.groups in (1, conv.channels_out)
            return _Convolution(
                self._keep(weight), bias, self._keep(state.overlap), None,
                weight.shape[0], conv.channels_out, weight.shape[2], conv.stride, 1, int(conv.groups > 1), 0,
            )  # fmt: skip
        assert isinstance(state, ConvState)
        return _Convolution(
            self._keep(weight), bias, self._keep(state.previous), self._keep(state.started),
            weight.shape[1], weight.shape[0], weight.shape[2], conv.stride, 0, 0, int(conv.repeat_first),
        )  # fmt: skip

    def _books(self, quantizer: SplitQuantizer) -> list[_Codebook]:
        parts: list[ResidualQuantizer] = [quantizer.rvq_first, quantizer.rvq_rest]
        vectors = [book.vectors.detach() for part in parts for book in part.codebooks]
        return [_Codebook(self._keep(v), self._keep(v.square().sum(dim=1))) for v in vectors]

    def _array(self, kind: type[Structure], items: list):
        array = (kind * len(items))(*items)
        self._kept.append(array)
        return ctypes.cast(pointer(array), POINTER(kind))

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return address(tensor)
