"""The engine's language model over whole sequences, with gradients.

The layers are the engine's own, so what is trained here is what runs there; only attention differs in
form: it sees all columns at once instead of a ring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from personaplex.config import AGENT, TEXT
from personaplex.models.language_model import LanguageModel
from personaplex.models.temporal import TemporalLayer
from personaplex.nn.layers import apply_rope, rope_angles
from personaplex.nn.weight import Weight
from training.finetune.lessons import Batch

DEPTH_PIECE_FRAMES = 512
"""Frames the depth transformer takes at a time when activations are made anew."""


def train_whole_(model: LanguageModel) -> None:
    """Make every weight a parameter that gets a gradient, in float32 and in memory of its own."""
    for module in model.modules():
        if isinstance(module, Weight):
            module.data = nn.Parameter(module.data.float().clone())
        else:
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.detach().float().clone()))


@dataclass(frozen=True)
class Logits:
    """text: [B, T, text_card]; audio: [N, 8, card]; float32."""

    text: Tensor
    audio: Tensor


@dataclass(frozen=True)
class Losses:
    """Weighted mean cross-entropies in nats; ``sound`` holds all 8 codebooks, the next two show parts of it."""

    text: Tensor
    sound: Tensor
    semantic: Tensor
    acoustic: Tensor

    def total(self, text_weight: float = 1.0) -> Tensor:
        return text_weight * self.text + self.sound


class SequenceModel(nn.Module):
    """A language model whose every next column is known: teacher forcing."""

    def __init__(self, lm: LanguageModel, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.lm, self._again = lm, gradient_checkpointing

    def forward(self, inputs: Tensor, targets: Tensor, predicted: Tensor) -> Logits:
        """inputs, targets: [B, T, 17] int64, columns and those after them; predicted: [B, T] bool, where the agent's
        codes are wanted, N in all.
        """
        hidden = self.hidden(inputs)
        wanted = targets[predicted]
        return Logits(self.lm.temporal.text_linear(hidden).float(), self._audio(hidden[predicted], wanted))

    def hidden(self, columns: Tensor) -> Tensor:
        """columns [B, T, 17] int64, from a stream's first on → [B, T, dim] float32 after the final norm."""
        config, temporal = self.lm.config, self.lm.temporal
        x = temporal.embed(columns, torch.float32)
        positions = torch.arange(columns.shape[1], device=columns.device)[None]
        cos, sin = rope_angles(positions, config.head_dim, config.max_period)
        for layer in temporal.layers:
            x = self._run(self._layer, layer, x, cos, sin)
        return temporal.out_norm(x)

    def _layer(self, layer: TemporalLayer, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = layer.project(x)
        attended = self._attend(apply_rope(query, cos, sin), apply_rope(key, cos, sin), value)
        return layer.finish(x, attended)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        window = self.lm.config.context - 1  # a ring of `context` entries shows one less
        length = query.shape[2]
        if length <= window:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        distance = torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=(distance >= 0) & (distance < window))

    def _audio(self, hidden: Tensor, columns: Tensor) -> Tensor:
        """hidden [N, dim] and the columns [N, 17] predicted from it → [N, 8, card] float32."""
        size = DEPTH_PIECE_FRAMES if self._again else max(1, hidden.shape[0])
        pieces = zip(hidden.split(size), columns.split(size), strict=True)
        return torch.cat([self._run(self._depth, h, c) for h, c in pieces])

    def _depth(self, hidden: Tensor, columns: Tensor) -> Tensor:
        logits: list[Tensor] = []

        def choose(step: int, step_logits: Tensor) -> Tensor:
            logits.append(step_logits)
            return columns[:, AGENT.start + step]

        self.lm.depth(hidden[:, None], columns[:, TEXT.start], choose)
        return torch.stack(logits, 1)

    def _run(self, function: Callable[..., Tensor], *inputs) -> Tensor:
        """Call, or call so that the activations inside are made anew for the gradient."""
        if self._again and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)

    def losses(self, batch: Batch) -> Losses:
        """The weighted losses of a batch."""
        code_weights = batch.weights[..., 1:]
        predicted = code_weights.sum(-1) > 0
        logits = self(batch.inputs, batch.targets, predicted)
        text = _cross_entropy(logits.text, batch.targets[..., TEXT.start])
        codes = _cross_entropy(logits.audio, batch.targets[predicted][:, AGENT])
        weights = code_weights[predicted]
        return Losses(
            text=_mean(text, batch.weights[..., 0]),
            sound=_mean(codes, weights),
            semantic=_mean(codes[:, :1], weights[:, :1]),
            acoustic=_mean(codes[:, 1:], weights[:, 1:]),
        )


def _cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """logits [..., card], tokens [...] → [...]."""
    return F.cross_entropy(logits.flatten(0, -2), tokens.flatten(), reduction="none").view(tokens.shape)


def _mean(loss: Tensor, weights: Tensor) -> Tensor:
    return (loss * weights).sum() / weights.sum().clamp(min=1e-6)
