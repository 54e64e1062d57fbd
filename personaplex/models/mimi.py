"""Mimi, the neural codec (Défossez et al. 2024): 80 ms of 24 kHz speech ↔ 8 codes.

SEANet convolutions, a causal transformer at 25 Hz and a split residual quantiser, all streaming:
any number of whole frames per call gives the same as one call over the whole signal.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personaplex.config import CodecTransformerConfig, MimiConfig
from personaplex.models.quantizer import SplitQuantizer
from personaplex.nn.attention import TransformerState, attend_chunk, attend_step
from personaplex.nn.conv import ConvState, ConvTransposeState, StreamingConv1d, StreamingConvTranspose1d
from personaplex.nn.layers import apply_rope, rope_angles
from personaplex.nn.module_list import ModuleList
from personaplex.nn.state import State
from personaplex.nn.weight_entry import WeightEntry, empty_parameter, plain_entry

LAYER_NORM_EPS = 1e-5


@dataclass
class SEANetState(State):
    """States of a stack's convolutions, in the order they run."""

    convs: list[ConvState | ConvTransposeState]


@dataclass
class EncoderState(State):
    """State of an encoding stream."""

    seanet: SEANetState
    transformer: TransformerState
    downsample: ConvState


@dataclass
class DecoderState(State):
    """State of a decoding stream."""

    upsample: ConvTransposeState
    transformer: TransformerState
    seanet: SEANetState


class ResidualBlock(nn.Module):
    """``x + conv1(ELU(conv3(ELU(x))))``; only the first convolution has a memory."""

    def __init__(self, channels: int, config: MimiConfig):
        super().__init__()
        hidden = channels // config.compress
        self.conv = StreamingConv1d(channels, hidden, config.residual_kernel_size)
        self.pointwise = StreamingConv1d(hidden, channels, 1)


SEANetLayer: TypeAlias = StreamingConv1d | StreamingConvTranspose1d | ResidualBlock


class SEANet(nn.Module):
    """A stack of ELU and convolutions, up or down; indices are those of the published files."""

    def __init__(self, layers: dict[int, SEANetLayer]):
        super().__init__()
        self.layers = nn.ModuleDict({str(index): layer for index, layer in layers.items()})

    def in_order(self) -> list[SEANetLayer]:
        """The layers in the order they run."""
        return [cast(SEANetLayer, layer) for layer in self.layers.values()]

    def _convolutions(self) -> list[StreamingConv1d | StreamingConvTranspose1d]:
        found: list[StreamingConv1d | StreamingConvTranspose1d] = []
        for layer in self.in_order():
            found += [layer.conv, layer.pointwise] if isinstance(layer, ResidualBlock) else [layer]
        return found

    def initial_state(self, slots: int, device: str) -> SEANetState:
        return SEANetState([conv.initial_state(slots, device) for conv in self._convolutions()])

    def forward(self, x: Tensor, state: SEANetState, active: Tensor) -> Tensor:
        states = iter(state.convs)
        for index, layer in enumerate(self.in_order()):
            if isinstance(layer, ResidualBlock):
                hidden = layer.conv(F.elu(x), next(states), active)
                x = x + layer.pointwise(F.elu(hidden, inplace=True), next(states), active)
            else:
                x = layer(x if index == 0 else F.elu(x, inplace=True), next(states), active)
        return x

    def checkpoint_entries(self, prefix: str) -> list[WeightEntry]:
        entries = []
        for index, layer in zip(self.layers, self.in_order(), strict=True):
            base = f"{prefix}model.{index}."
            if isinstance(layer, ResidualBlock):
                entries += layer.conv.checkpoint_entries(f"{base}block.1.conv.conv.")
                entries += layer.pointwise.checkpoint_entries(f"{base}block.3.conv.conv.")
            elif isinstance(layer, StreamingConvTranspose1d):
                entries += layer.checkpoint_entries(f"{base}convtr.convtr.")
            else:
                entries += layer.checkpoint_entries(f"{base}conv.conv.")
        return entries


def seanet_encoder(config: MimiConfig) -> SEANet:
    """Samples [B, 1, T] → features [B, dimension, T / (product of ratios)]."""
    channels = config.n_filters
    layers: dict[int, SEANetLayer] = {0: StreamingConv1d(1, channels, config.kernel_size)}
    index = 1
    for ratio in reversed(config.ratios):
        layers[index] = ResidualBlock(channels, config)
        layers[index + 2] = StreamingConv1d(channels, 2 * channels, 2 * ratio, stride=ratio)
        channels, index = 2 * channels, index + 3
    layers[index + 1] = StreamingConv1d(channels, config.dimension, config.last_kernel_size)
    return SEANet(layers)


def seanet_decoder(config: MimiConfig) -> SEANet:
    """Features [B, dimension, T] → samples [B, 1, T · (product of ratios)]."""
    channels = config.n_filters * 2 ** len(config.ratios)
    layers: dict[int, SEANetLayer] = {0: StreamingConv1d(config.dimension, channels, config.kernel_size)}
    index = 1
    for ratio in config.ratios:
        layers[index + 1] = StreamingConvTranspose1d(channels, channels // 2, 2 * ratio, stride=ratio)
        layers[index + 2] = ResidualBlock(channels // 2, config)
        channels, index = channels // 2, index + 3
    layers[index + 1] = StreamingConv1d(channels, 1, config.last_kernel_size)
    return SEANet(layers)


class CodecTransformerLayer(nn.Module):
    """Pre-norm layer with LayerNorm, exact GELU and layer scale."""

    def __init__(self, config: CodecTransformerConfig):
        super().__init__()
        dim, hidden = config.d_model, config.dim_feedforward
        self.config = config
        self.norm1_weight, self.norm1_bias = empty_parameter(dim), empty_parameter(dim)
        self.norm2_weight, self.norm2_bias = empty_parameter(dim), empty_parameter(dim)
        self.in_proj_weight = empty_parameter(3 * dim, dim)
        self.out_proj_weight = empty_parameter(dim, dim)
        self.linear1_weight = empty_parameter(hidden, dim)
        self.linear2_weight = empty_parameter(dim, hidden)
        self.scale_1, self.scale_2 = empty_parameter(dim), empty_parameter(dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, dim] → query, key, value, each [B, H, T, D]."""
        normed = F.layer_norm(x, x.shape[-1:], self.norm1_weight, self.norm1_bias, LAYER_NORM_EPS)
        packed = F.linear(normed, self.in_proj_weight)
        return packed.unflatten(-1, (3, self.config.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual sums after attention; attended [B, H, T, D]."""
        x = x + self.scale_1 * F.linear(attended.transpose(1, 2).flatten(2), self.out_proj_weight)
        normed = F.layer_norm(x, x.shape[-1:], self.norm2_weight, self.norm2_bias, LAYER_NORM_EPS)
        return x + self.scale_2 * F.linear(F.gelu(F.linear(normed, self.linear1_weight)), self.linear2_weight)

    def checkpoint_entries(self, prefix: str) -> list[WeightEntry]:
        names = {
            "norm1.weight": "norm1_weight", "norm1.bias": "norm1_bias",
            "norm2.weight": "norm2_weight", "norm2.bias": "norm2_bias",
            "self_attn.in_proj_weight": "in_proj_weight", "self_attn.out_proj.weight": "out_proj_weight",
            "linear1.weight": "linear1_weight", "linear2.weight": "linear2_weight",
            "layer_scale_1.scale": "scale_1", "layer_scale_2.scale": "scale_2",
        }  # fmt: skip
        return [plain_entry(prefix + key, self, name) for key, name in names.items()]


class CodecTransformer(nn.Module):
    """Causal transformer over the codec's 25 Hz steps."""

    def __init__(self, config: CodecTransformerConfig, steps_per_frame: int):
        super().__init__()
        self.config, self.steps_per_frame = config, steps_per_frame
        self.layers = ModuleList[CodecTransformerLayer](CodecTransformerLayer(config) for _ in range(config.num_layers))

    def initial_state(self, slots: int, device: str) -> TransformerState:
        c = self.config
        head_dim = c.d_model // c.num_heads
        return TransformerState.empty(slots, c.num_layers, c.num_heads, c.context, head_dim, torch.float32, device)

    def forward(self, x: Tensor, state: TransformerState, active: Tensor) -> Tensor:
        """x: [B, T, dim], T a multiple of the steps of a frame → the same shape."""
        longest = max(self.config.context // self.steps_per_frame, 1) * self.steps_per_frame
        return torch.cat([self._block(block, state, active) for block in x.split(longest, dim=1)], dim=1)

    def _block(self, x: Tensor, state: TransformerState, active: Tensor) -> Tensor:
        steps = x.shape[1]
        positions = state.position[:, None] + torch.arange(steps, device=x.device)
        cos, sin = rope_angles(positions, self.config.d_model // self.config.num_heads, self.config.max_period)
        for layer, cache in zip(self.layers, state.layers, strict=True):
            query, key, value = layer.project(x)
            query, key = apply_rope(query, cos, sin), apply_rope(key, cos, sin)
            if steps == self.steps_per_frame:
                attended = attend_step(query, key, value, cache, state.position, active, cache.capacity)
            else:
                attended = attend_chunk(query, key, value, cache, state.position, active, self.steps_per_frame)
            x = layer.finish(x, attended)
        state.advance(steps, active)
        return x

    def checkpoint_entries(self, prefix: str) -> list[WeightEntry]:
        entries = []
        for index, layer in enumerate(self.layers):
            entries += layer.checkpoint_entries(f"{prefix}transformer.layers.{index}.")
        return entries


def _exact(device: torch.device) -> AbstractContextManager:
    """Convolutions in float32 on a GPU too: cuDNN would round to 10 bits of mantissa, which changes codes."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if device.type == "cuda" else nullcontext()


class Mimi(nn.Module):
    """The codec; weights are shared by all streams, states are not."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        stride, dim = config.resample_stride, config.dimension
        self.config = config
        self.encoder = seanet_encoder(config)
        self.encoder_transformer = CodecTransformer(config.transformer, stride)
        self.downsample = StreamingConv1d(dim, dim, 2 * stride, stride=stride, bias=False, repeat_first=True)
        self.quantizer = SplitQuantizer(config)
        self.upsample = StreamingConvTranspose1d(dim, dim, 2 * stride, stride=stride, groups=dim, bias=False)
        self.decoder_transformer = CodecTransformer(config.transformer, stride)
        self.decoder = seanet_decoder(config)

    def encoder_state(self, slots: int, device: str = "cpu") -> EncoderState:
        return EncoderState(
            self.encoder.initial_state(slots, device),
            self.encoder_transformer.initial_state(slots, device),
            self.downsample.initial_state(slots, device),
        )

    def decoder_state(self, slots: int, device: str = "cpu") -> DecoderState:
        return DecoderState(
            self.upsample.initial_state(slots, device),
            self.decoder_transformer.initial_state(slots, device),
            self.decoder.initial_state(slots, device),
        )

    def encode(self, pcm: Tensor, state: EncoderState, active: Tensor) -> Tensor:
        """pcm: [B, F · frame_samples] float32 in −1..1, active: [B] bool → codes [B, 8, F] int64."""
        with _exact(pcm.device):
            features = self.encoder(pcm[:, None], state.seanet, active).transpose(1, 2)
            features = self.encoder_transformer(features, state.transformer, active).transpose(1, 2)
            return self.quantizer.encode(self.downsample(features, state.downsample, active).transpose(1, 2))

    def decode(self, codes: Tensor, state: DecoderState, active: Tensor) -> Tensor:
        """codes: [B, 8, F] int64 in 0..codebook_size − 1 → pcm [B, F · frame_samples] float32."""
        with _exact(codes.device):
            latent = self.quantizer.decode(codes).transpose(1, 2)
            features = self.upsample(latent, state.upsample, active).transpose(1, 2)
            features = self.decoder_transformer(features, state.transformer, active).transpose(1, 2)
            return self.decoder(features, state.seanet, active)[:, 0]

    def checkpoint_entries(self) -> list[WeightEntry]:
        """Every tensor of a published codec file."""
        return [
            *self.encoder.checkpoint_entries("encoder."),
            *self.encoder_transformer.checkpoint_entries("encoder_transformer."),
            *self.downsample.checkpoint_entries("downsample.conv.conv.conv."),
            *self.quantizer.checkpoint_entries("quantizer."),
            *self.upsample.checkpoint_entries("upsample.convtr.convtr.convtr."),
            *self.decoder_transformer.checkpoint_entries("decoder_transformer."),
            *self.decoder.checkpoint_entries("decoder."),
        ]
