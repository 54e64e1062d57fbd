"""The codec in a form that trains fast on a CPU; `export` writes it in the published layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.codec.layers import Conv, Residual, Transformer, TransposedConv, WideConv, elu
from training.codec.quantizer import Quantizer

SAMPLE_RATE_HZ = 24_000
PHONE_SLOTS = 4  # phone labels a frame: one every 20 ms
_STEPS_PER_FRAME = 2  # the transformers run at 25 Hz
_FOLDS = {4: 4, 5: 2, 6: 2, 8: 2}  # outputs computed together at each ratio; chosen by timing


@dataclass(frozen=True)
class CodecShape:
    """The embedded codec's sizes. `ratios` are the decoder's order, as in the published configuration."""

    n_filters: int = 16
    dimension: int = 256
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    num_heads: int = 4
    num_layers: int = 3
    dim_feedforward: int = 768
    context: int = 32
    max_period: float = 10_000.0
    codebook_dim: int = 128
    codebook_size: int = 512
    num_codebooks: int = 8
    num_phones: int = 48  # of the training's phone reader, which is not exported
    num_features: int = 0  # of a recogniser's, read in training from codebook 0; not exported either

    @property
    def frame_samples(self) -> int:
        hop = _STEPS_PER_FRAME
        for ratio in self.ratios:
            hop *= ratio
        return hop


class Encoder(nn.Module):
    def __init__(self, shape: CodecShape) -> None:
        super().__init__()
        channels = shape.n_filters
        self.dimension = shape.dimension
        self.first = WideConv(1, channels, 7, fold=8)
        self.residuals, self.downs = nn.ModuleList(), nn.ModuleList()
        for ratio in reversed(shape.ratios):
            self.residuals.append(Residual(channels, _FOLDS[ratio]))
            self.downs.append(Conv(channels, 2 * channels, 2 * ratio, ratio))
            channels *= 2
        self.last = Conv(channels, shape.dimension, 3, 1, 2)

    def forward(self, wave: Tensor) -> Tensor:
        """wave: [B, T] -> [B, T / 960, dimension]."""
        x = self.first(wave)
        for residual, down in zip(self.residuals, self.downs, strict=True):
            x = down(elu(residual(x)))
        return self.last(elu(x)).reshape(wave.shape[0], -1, self.dimension)


class Decoder(nn.Module):
    def __init__(self, shape: CodecShape) -> None:
        super().__init__()
        channels = shape.n_filters * 2 ** len(shape.ratios)
        self.first = WideConv(shape.dimension, channels, 7)
        self.ups, self.residuals = nn.ModuleList(), nn.ModuleList()
        for ratio in shape.ratios:
            self.ups.append(TransposedConv(channels, channels // 2, ratio))
            channels //= 2
            self.residuals.append(Residual(channels, _FOLDS[ratio]))
        self.last = Conv(channels, 1, 3, 1, 8)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, dimension] -> [B, 960 T]."""
        x = self.first(x)
        for up, residual in zip(self.ups, self.residuals, strict=True):
            x = residual(up(elu(x)))
        return self.last(elu(x)).reshape(x.shape[0], -1)


class Codec(nn.Module):
    def __init__(self, shape: CodecShape) -> None:
        super().__init__()
        self.shape = shape
        dim = shape.dimension

        def transformer() -> Transformer:
            sizes = (shape.num_heads, shape.num_layers, shape.dim_feedforward, shape.context, shape.max_period)
            return Transformer(dim, *sizes)

        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        self.encoder_transformer, self.decoder_transformer = transformer(), transformer()
        # both resamplers start as plain averaging and repeating
        self.downsample = nn.Parameter(torch.randn(dim, dim, 4) * 0.02)
        self.downsample.data[:, :, 2:] += 0.5 * torch.eye(dim)[:, :, None]
        self.upsample = nn.Parameter(torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(dim, 1) + 0.02 * torch.randn(dim, 4))
        self.quantizer = Quantizer(dim, shape.codebook_dim, shape.num_codebooks, shape.codebook_size)
        self.phone_reader = nn.Linear(dim, PHONE_SLOTS * shape.num_phones)
        self.feature_reader = nn.Linear(dim, shape.num_features) if shape.num_features else None

    def encode(self, wave: Tensor) -> Tensor:
        """wave: [B, frames * 1920] -> latent [B, frames, dimension] float32, in the wave's precision until then."""
        h = self.encoder_transformer(self.encoder(wave))
        batch, _, dim = h.shape
        h = torch.cat([h[:, :1], h[:, :1], h], 1)  # the published padding: the first value, repeated
        pairs = h.reshape(batch, -1, _STEPS_PER_FRAME * dim)
        windows = torch.cat([pairs[:, :-1], pairs[:, 1:]], -1)
        return (windows @ self.downsample.permute(2, 1, 0).reshape(4 * dim, dim).to(windows.dtype)).float()

    def decode(self, latent: Tensor) -> Tensor:
        """latent: [B, frames, dimension] -> wave [B, frames * 1920] float32, in the latent's precision until then."""
        weight = self.upsample.to(latent.dtype)
        before = F.pad(latent[:, :-1], (0, 0, 1, 0))
        even = latent * weight[:, 0] + before * weight[:, 2]
        odd = latent * weight[:, 1] + before * weight[:, 3]
        return self.decoder(self.decoder_transformer(torch.stack([even, odd], 2).flatten(1, 2))).float()

    def phones(self, semantic: Tensor) -> Tensor:
        """[B, frames, dimension] -> logits [B, frames * PHONE_SLOTS, num_phones]."""
        return self.phone_reader(semantic).view(semantic.shape[0], -1, self.shape.num_phones)

    def heard_parameters(self) -> list[nn.Parameter]:
        """Everything up to the codes: frozen while the decoder alone is trained."""
        parts = (self.encoder, self.encoder_transformer, self.quantizer.first_in, self.quantizer.rest_in)
        return [self.downsample, *(p for part in parts for p in part.parameters())]


def load_codec(path: Path) -> Codec:
    """The codec of a checkpoint."""
    state = torch.load(path, map_location=torch.get_default_device(), weights_only=True)
    shape = {**state["shape"], "ratios": tuple(state["shape"]["ratios"])}
    codec = Codec(CodecShape(**shape)).eval()
    codec.load_state_dict(state["codec"])
    return codec
