"""The reconstruction loss: distances of spectra at four resolutions, up to 8 kHz.

Per resolution: log-mel L1, log-STFT L1 and spectral convergence; phases are left free. Every crop is
brought to one level first, so that a soft voice counts as much as a loud one. A step uses two of the four.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.codec.model import SAMPLE_RATE_HZ

RESOLUTIONS = ((256, 24), (512, 48), (1024, 80), (2048, 120))  # window in samples, mel bands
TOP_HZ = 8_000.0
FLOOR = 3e-3  # magnitudes below it (about -50 dB) hardly count in the log terms
_LEVEL, _MOST_GAIN = 0.1, 3.0  # root mean square a crop is brought to
_SILENT_LEVEL = 3e-3  # what is softer stays so
_LOG_MEL, _LOG_STFT, _CONVERGENCE, _BIAS = 1.0, 0.5, 0.5, 1.0


def mel_filters(window: int, bands: int) -> Tensor:
    """[window/2 + 1, bands] float32 triangles; a band narrower than a bin takes its nearest bin."""
    hz = torch.linspace(0, SAMPLE_RATE_HZ / 2, window // 2 + 1)
    top_mel = 2595 * torch.log10(torch.tensor(1 + TOP_HZ / 700))
    edges = 700 * (10 ** (torch.linspace(0, float(top_mel), bands + 2) / 2595) - 1)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (hz[:, None] - left) / (centre - left)
    falling = (right - hz[:, None]) / (right - centre)
    filters = torch.minimum(rising, falling).clamp(min=0)
    empty = filters.sum(0) == 0
    nearest = (centre / (SAMPLE_RATE_HZ / 2) * (len(hz) - 1)).round().long()
    filters[nearest[empty], empty.nonzero()[:, 0]] = 1.0
    return filters


def levelled(made: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """made, target: [B, T] -> both, scaled so that each target has the same level; silence is left as it is."""
    level = target.pow(2).mean(-1, keepdim=True).sqrt()
    gain = torch.where(level < _SILENT_LEVEL, 1.0, (_LEVEL / level.clamp(min=_SILENT_LEVEL)).clamp(max=_MOST_GAIN))
    return made * gain, target * gain


def magnitudes(wave: Tensor, window: Tensor, hop: int) -> Tensor:
    """wave: [B, T] float32, window: [W] -> the spectrum's magnitudes [B, windows, W/2 + 1].

    Without each window's mean: in silence its logarithm would be most of the gradient.
    """
    pieces = wave.unfold(-1, len(window), hop)
    bins = torch.view_as_real(torch.fft.rfft((pieces - pieces.mean(-1, keepdim=True)) * window))
    return (bins.pow(2).sum(-1) * (4 / len(window)) + 1e-8).sqrt()


class SpectralLoss(nn.Module):
    """One resolution of the loss."""

    hann: Tensor
    mel: Tensor

    def __init__(self, window: int, bands: int) -> None:
        super().__init__()
        self.window = window
        self.kept_bins = int(window / 2 * TOP_HZ / (SAMPLE_RATE_HZ / 2)) + 1
        self.register_buffer("hann", torch.hann_window(window))
        self.register_buffer("mel", mel_filters(window, bands))

    def forward(self, made: Tensor, target: Tensor) -> Tensor:
        """made, target: [B, T] float32 in -1..1 -> scalar."""
        made, target = levelled(made, target)
        made_size, target_size = (magnitudes(wave, self.hann, self.window // 4) for wave in (made, target))

        def log_distance(a: Tensor, b: Tensor) -> Tensor:
            return (torch.log(a + FLOOR) - torch.log(b + FLOOR)).abs().mean()

        energy = target_size.pow(2).sum() + 1e-3
        convergence = ((made_size - target_size).pow(2).sum() / energy).clamp(min=1e-6).sqrt()
        kept = slice(0, self.kept_bins)
        return (
            _LOG_MEL * log_distance(made_size @ self.mel, target_size @ self.mel)
            + _LOG_STFT * log_distance(made_size[..., kept], target_size[..., kept])
            + _CONVERGENCE * convergence
            + _BIAS * (made - target).mean(-1).abs().mean()
        )


def padded(wave: Tensor) -> Tensor:
    """The wave, zero-padded by half of the largest window at both ends."""
    half = RESOLUTIONS[-1][0] // 2
    return F.pad(wave, (half, half))
