"""How far a reconstruction is from its target: spectra at four resolutions, up to 9 kHz.

Per resolution: log-mel L1, log-STFT L1, spectral convergence and complex-STFT convergence
(the last one asks for the right phase). A step uses two of the four.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.codec.model import SAMPLE_RATE_HZ

RESOLUTIONS = ((256, 24), (512, 48), (1024, 80), (2048, 120))  # window in samples, mel bands
TOP_HZ = 9_000.0
_FLOOR = 3e-3  # magnitudes below it (about -50 dB) hardly count in the log terms
_LOG_MEL, _LOG_STFT, _CONVERGENCE, _COMPLEX = 1.0, 0.5, 0.5, 0.3


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


class SpectralLoss(nn.Module):
    """One resolution of the loss."""

    def __init__(self, window: int, bands: int) -> None:
        super().__init__()
        self.window = window
        self.kept_bins = int(window / 2 * TOP_HZ / (SAMPLE_RATE_HZ / 2)) + 1
        self.register_buffer("hann", torch.hann_window(window))
        self.register_buffer("mel", mel_filters(window, bands))

    def _spectrum(self, wave: Tensor) -> Tensor:
        """wave: [B, T] float32 -> [B, windows, bins, 2], hop a quarter of a window."""
        pieces = wave.unfold(-1, self.window, self.window // 4) * self.hann
        return torch.view_as_real(torch.fft.rfft(pieces)) * (2 / self.window**0.5)

    def forward(self, made: Tensor, target: Tensor) -> Tensor:
        """made, target: [B, T] float32 in -1..1 -> scalar."""
        made_bins, target_bins = self._spectrum(made), self._spectrum(target)
        made_size = (made_bins.pow(2).sum(-1) + 1e-8).sqrt()
        target_size = (target_bins.pow(2).sum(-1) + 1e-8).sqrt()

        def log_distance(a: Tensor, b: Tensor) -> Tensor:
            return (torch.log(a + _FLOOR) - torch.log(b + _FLOOR)).abs().mean()

        energy = target_size.pow(2).sum() + 1e-3
        convergence = ((made_size - target_size).pow(2).sum() / energy).clamp(min=1e-6).sqrt()
        phase = ((made_bins - target_bins).pow(2).sum() / energy).clamp(min=1e-6).sqrt()
        kept = slice(0, self.kept_bins)
        return (
            _LOG_MEL * log_distance(made_size @ self.mel, target_size @ self.mel)
            + _LOG_STFT * log_distance(made_size[..., kept], target_size[..., kept])
            + _CONVERGENCE * convergence
            + _COMPLEX * phase
        )


def padded(wave: Tensor) -> Tensor:
    """Room for the largest window to reach past both ends."""
    half = RESOLUTIONS[-1][0] // 2
    return F.pad(wave, (half, half))
