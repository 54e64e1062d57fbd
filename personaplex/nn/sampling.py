"""Token sampling: softmax, top-k and a draw, with the noise as an input.

A draw inverts the cumulative distribution at one uniform number, so a conversation's noise is
9 numbers per frame from its own generator, whatever runs beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from personaplex.messages import MAX_TOP_K, SamplingOptions
from personaplex.nn.state import State, slot_field


@dataclass
class SamplerState(State):
    """Each slot's options on the device."""

    temperature: Tensor = slot_field(reset=1)  # [B, 2] float32: text, audio
    top_k: Tensor = slot_field(reset=1)  # [B, 2] int64: text, audio
    greedy: Tensor = slot_field(reset=1)  # [B] bool

    @classmethod
    def empty(cls, slots: int, device: str) -> SamplerState:
        return cls(
            torch.ones(slots, 2, device=device),
            torch.ones(slots, 2, dtype=torch.int64, device=device),
            torch.ones(slots, dtype=torch.bool, device=device),
        )

    def set_row(self, row: int, options: SamplingOptions) -> None:
        device = self.temperature.device
        self.temperature[row] = torch.tensor([options.temperature_text, options.temperature_audio], device=device)
        self.top_k[row] = torch.tensor([options.top_k_text, options.top_k_audio], device=device)
        self.greedy[row] = options.greedy


def draw(logits: Tensor, uniform: Tensor, temperature: Tensor, top_k: Tensor, greedy: Tensor) -> Tensor:
    """One token per slot.

    logits: [B, V] float32; uniform: [B] float32 in [0, 1); temperature: [B] float32; top_k: [B] int64;
    greedy: [B] bool → [B] int64.
    """
    probabilities = torch.softmax(logits / temperature[:, None], dim=-1)
    likeliest, tokens = probabilities.topk(min(MAX_TOP_K, logits.shape[-1]), dim=-1)
    rank = torch.arange(likeliest.shape[-1], device=logits.device)
    cumulative = (likeliest * (rank < top_k[:, None])).cumsum(dim=-1)
    target = uniform[:, None] * cumulative[:, -1:]
    chosen = (cumulative <= target).sum(dim=-1, keepdim=True)
    # Rounding may leave the target at the very end: stay within the k that are allowed.
    chosen = torch.minimum(chosen, top_k[:, None] - 1).clamp(max=likeliest.shape[-1] - 1)
    return torch.where(greedy, logits.argmax(dim=-1), tokens.gather(-1, chosen)[:, 0])
