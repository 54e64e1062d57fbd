"""A perceptual loss for the codec: the distance between two sounds to a small network that reads phones.

It learns from recordings and their phones before the codec does, and then no more. Part of the codec's loss is how
far the listener's layers and its reading of a reconstruction are from those of the recording: spectra can be near
in every band and yet say "mat" for "nat". (Deep feature losses: Johnson et al. 2016, for images; Germain et al. 2018,
for speech.)
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.codec.data import IGNORED, Batch
from training.codec.loss import FLOOR, levelled, magnitudes, mel_filters

log = logging.getLogger(__name__)

_WINDOW, _HOP, _BANDS = 512, 240, 40  # 21 ms every 10 ms, as recognisers hear
_HOPS_PER_SLOT = 2
_WIDTH, _DILATIONS = 192, (1, 1, 2, 3)
_EDGE_SLOTS = 4  # at the ends of a crop, where half of what tells a phone is cut off
_READING, _LAYERS = 1.0, 1.0  # weights of the two halves of the distance
_LEARNING_RATE, _CLIP_NORM = 2e-3, 5.0


class PhoneListener(nn.Module):
    """Log-mel spectrum, then convolutions over time; it hears 0.2 s on either side."""

    hann: Tensor
    mel: Tensor

    def __init__(self, num_phones: int) -> None:
        super().__init__()
        self.register_buffer("hann", torch.hann_window(_WINDOW))
        self.register_buffer("mel", mel_filters(_WINDOW, _BANDS))
        self.first = nn.Conv1d(_BANDS, _WIDTH, 5, stride=_HOPS_PER_SLOT, padding=2)
        self.convolutions = nn.ModuleList(nn.Conv1d(_WIDTH, _WIDTH, 5, padding=2 * d, dilation=d) for d in _DILATIONS)
        self.norms = nn.ModuleList(nn.GroupNorm(1, _WIDTH) for _ in _DILATIONS)
        self.reader = nn.Conv1d(_WIDTH, num_phones, 1)

    def _heard(self, wave: Tensor) -> Tensor:
        """wave: [B, T] float32 -> log-mel [B, bands, T / 240], each band without its mean."""
        size = magnitudes(F.pad(wave, ((_WINDOW - _HOP) // 2,) * 2), self.hann, _HOP)
        mel = torch.log(size @ self.mel + FLOOR)
        return (mel - mel.mean(1, keepdim=True)).transpose(1, 2)

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        """wave: [B, T] float32 -> logits [B, phones, T / 480] and each layer's [B, width, T / 480]."""
        x = F.gelu(self.first(self._heard(wave)))
        layers = [x]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = x + F.gelu(norm(convolution(x)))
            layers.append(x)
        return self.reader(x), layers

    def distance(self, made: Tensor, target: Tensor) -> Tensor:
        """made, target: [B, T] float32 -> scalar: divergence of the readings in nats, and distance of the layers."""
        made, target = levelled(made, target)
        with torch.no_grad():
            wanted, wanted_layers = self(target)
        read, layers = self(made)
        inside = slice(_EDGE_SLOTS, -_EDGE_SLOTS)
        read, wanted = read.log_softmax(1)[..., inside], wanted.log_softmax(1)[..., inside]
        reading = F.kl_div(read, wanted, log_target=True, reduction="none").sum(1).mean()
        apart = [
            (a - b)[..., inside].abs().mean() / b[..., inside].abs().mean().clamp(min=1e-3)
            for a, b in zip(layers, wanted_layers, strict=True)
        ]
        return _READING * reading + _LAYERS * sum(apart) / len(apart)


def teach(listener: PhoneListener, batch: Callable[[], Batch], steps: int, crops: int = 12) -> float:
    """Train it on `steps` batches of `crops` crops, noise included; returns the share of right slots at the end."""
    optimizer = torch.optim.AdamW(listener.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=max(2, steps))
    right: deque[float] = deque(maxlen=50)
    for step in range(steps):
        drawn = [batch()]
        while sum(len(part.heard) for part in drawn) < crops:
            drawn.append(batch())
        heard, phones = torch.cat([part.heard for part in drawn]), torch.cat([part.phones for part in drawn])
        logits, _ = listener(heard)
        known = phones != IGNORED
        count = known.sum().clamp(min=1)
        loss = F.cross_entropy(logits, phones, ignore_index=IGNORED, reduction="sum") / count
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(listener.parameters(), _CLIP_NORM)
        optimizer.step()
        schedule.step()
        right.append(float((logits.argmax(1) == phones)[known].sum() / count))
        if step % 200 == 0:
            log.info("the listener reads %.3f of the phones after %d steps", fmean(right), step)
    return fmean(right)
