"""A discriminator for the codec's decoder, trained beside it while the codes are final.

Spectral distances are smallest for the mean of all plausible signals, which buzzes. The critic sees complex spectra of
two resolutions (Zeghidour et al. 2021; Défossez et al. 2022) and is small, since it is trained on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.codec.loss import levelled

WINDOWS = (512, 1024)  # samples
_WIDTH, _SLOPE = 16, 0.2
_KERNEL, _STRIDE = (3, 9), (1, 4)  # time, frequency
_TOP_SHARE = 0.67  # of the bins: up to 8 kHz, where speech is
_COMPRESSION = 0.5  # of the magnitudes, so that soft parts count


class _Scale(nn.Module):
    """A convolutional discriminator of one spectral resolution."""

    hann: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        self.hop = window // 4
        self.register_buffer("hann", torch.hann_window(window))
        padding = (_KERNEL[0] // 2, _KERNEL[1] // 2)
        weight_norm = nn.utils.parametrizations.weight_norm
        widths = ((2, _WIDTH), (_WIDTH, 2 * _WIDTH), (2 * _WIDTH, 2 * _WIDTH))
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(inputs, outputs, _KERNEL, _STRIDE, padding)) for inputs, outputs in widths
        )
        self.last = weight_norm(nn.Conv2d(2 * _WIDTH, 1, 3, padding=1))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        """wave: [B, T] float32 -> verdicts [B, 1, windows, bands] and each layer's features."""
        bins = torch.fft.rfft(wave.unfold(-1, len(self.hann), self.hop) * self.hann)
        parts = torch.view_as_real(bins[..., : int(_TOP_SHARE * bins.shape[-1])])
        size = (parts.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt()
        x, features = (parts * size ** (_COMPRESSION - 1.0)).permute(0, 3, 1, 2).contiguous(), []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), _SLOPE)
            features.append(x)
        return self.last(x), features


class Critic(nn.Module):
    """Several resolutions; crops are brought to one level first, as for the spectra's distances."""

    def __init__(self, windows: Sequence[int] = WINDOWS) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_Scale(window) for window in windows)

    def unmasked(self, made: Tensor, target: Tensor) -> Tensor:
        """The critic's own loss: recordings above 1, what was made below -1 (hinge). made, target: [B, T] float32."""
        made, target = levelled(made.detach(), target)
        parts = [F.relu(1 - scale(target)[0]).mean() + F.relu(1 + scale(made)[0]).mean() for scale in self.scales]
        return torch.stack(parts).mean()

    def passing(self, made: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's two losses: the adversarial one, and the relative distance of the critic's features."""
        made, target = levelled(made, target)
        verdicts, apart = [], []
        for scale in self.scales:
            with torch.no_grad():
                _, wanted = scale(target)
            verdict, features = scale(made)
            verdicts.append(-verdict.mean())
            apart += [
                (a - b).abs().mean() / b.abs().mean().clamp(min=1e-3) for a, b in zip(features, wanted, strict=True)
            ]
        return torch.stack(verdicts).mean(), torch.stack(apart).mean()


class Rival:
    """A critic with its optimiser and its part of the decoder's gradient; both learn a step in turn."""

    def __init__(self, *, verdict_share: float, feature_share: float, head_start: int, learning_rate: float) -> None:
        """head_start: steps in which the critic learns alone, and as many again until it has its whole share."""
        self.critic = Critic()
        self._shares, self._head_start, self.steps = (verdict_share, feature_share), head_start, 0
        self._optimizer = torch.optim.AdamW(self.critic.parameters(), lr=learning_rate, betas=(0.5, 0.9))

    def learn(self, made: Tensor, target: Tensor) -> Tensor:
        """One step of the critic; returns its hinge loss, 2 at chance."""
        loss = self.critic.unmasked(made, target)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self.steps += 1
        return loss.detach()

    def joined(self, made: Tensor, target: Tensor, plain: Tensor) -> Tensor:
        """The gradient for the sound `made`: `plain`, that of all other losses, and the critic's. Each [B, T].

        The critic's two are brought to their shares of `plain`'s size (as by the balancer of Défossez et al. 2022): by
        themselves they grow without bound as it learns, and nothing else is heeded. None of them in the head start.
        """
        grown = min(1.0, max(0.0, self.steps / self._head_start - 1.0))
        if grown == 0.0:
            return plain
        self.critic.requires_grad_(False)
        losses = self.critic.passing(made, target)
        pushes = [torch.autograd.grad(loss, made, retain_graph=True)[0] for loss in losses]
        self.critic.requires_grad_(True)
        size = plain.norm()
        for share, push in zip(self._shares, pushes, strict=True):
            plain = plain + push * (grown * share * size / push.norm().clamp(min=1e-12))
        return plain

    def state(self) -> dict[str, Any]:
        return {"critic": self.critic.state_dict(), "optimizer": self._optimizer.state_dict(), "steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
