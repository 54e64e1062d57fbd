"""The depth transformer: the 8 agent codes of one frame, one after the other.

Each step has weights of its own; there is no position encoding, and attention sees the steps of
this frame only, so the cache is scratch. Steps 8–15 of a 16-step checkpoint would predict the
user's codes, which are always known: they are neither loaded nor run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personaplex.config import NUM_AGENT_CODEBOOKS, LMConfig
from personaplex.models.temporal import TokenEmbedding
from personaplex.nn.layers import GatedFeedForward, RMSNorm
from personaplex.nn.linear import Linear
from personaplex.nn.module_list import ModuleList
from personaplex.nn.weight_entry import WeightEntry, linear_entry, plain_entry

STEPS = NUM_AGENT_CODEBOOKS


def _per_step(in_features: int, out_features: int) -> ModuleList[Linear]:
    return ModuleList[Linear](Linear(in_features, out_features) for _ in range(STEPS))


def _stacked_entry(key: str, linears: ModuleList[Linear], steps_stored: int) -> WeightEntry:
    """One tensor with the matrices of all steps, stacked; only the first 8 are read."""
    rows, width = linears[0].out_features, linears[0].in_features
    slices = tuple((linear, slice(k * rows, (k + 1) * rows)) for k, linear in enumerate(linears))
    return WeightEntry(key, (steps_stored * rows, width), linears=slices)


def _unused(key: str, rows: int, width: int) -> WeightEntry:
    return WeightEntry(key, (rows, width), used=False)


class DepthLayer(nn.Module):
    """Pre-norm layer whose matrices differ by step and whose norms do not."""

    def __init__(self, config: LMConfig):
        super().__init__()
        dim = config.depformer_dim
        self.config = config
        self.norm1, self.norm2 = RMSNorm(dim), RMSNorm(dim)
        self.in_proj = _per_step(dim, 3 * dim)
        self.out_proj = _per_step(dim, dim)
        hidden = config.depth_feedforward_dim
        self.gating = ModuleList[GatedFeedForward](GatedFeedForward(dim, hidden) for _ in range(STEPS))

    def forward(self, x: Tensor, step: int, past: list[tuple[Tensor, Tensor]]) -> Tensor:
        """x: [B, 1, dim] of this step; ``past`` holds keys and values of the steps before; this step's are appended."""
        packed = self.in_proj[step](self.norm1(x)).unflatten(-1, (3, self.config.depformer_num_heads, -1))
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        past.append((key, value))
        keys = torch.cat([k for k, _ in past], dim=2)
        values = torch.cat([v for _, v in past], dim=2)
        attended = F.scaled_dot_product_attention(query, keys, values)
        x = x + self.out_proj[step](attended.transpose(1, 2).flatten(2))
        return x + self.gating[step](self.norm2(x))

    def checkpoint_entries(self, prefix: str, steps_stored: int) -> list[WeightEntry]:
        dim, hidden = self.config.depformer_dim, self.config.depth_feedforward_dim
        entries = [
            plain_entry(f"{prefix}norm1.alpha", self.norm1, "alpha"),
            plain_entry(f"{prefix}norm2.alpha", self.norm2, "alpha"),
            _stacked_entry(f"{prefix}self_attn.in_proj_weight", self.in_proj, steps_stored),
            _stacked_entry(f"{prefix}self_attn.out_proj.weight", self.out_proj, steps_stored),
        ]
        for k, gating in enumerate(self.gating):
            entries += gating.checkpoint_entries(f"{prefix}gating.{k}.")
        for k in range(STEPS, steps_stored):
            entries.append(_unused(f"{prefix}gating.{k}.linear_in.weight", 2 * hidden, dim))
            entries.append(_unused(f"{prefix}gating.{k}.linear_out.weight", dim, hidden))
        return entries


class DepthTransformer(nn.Module):
    """From a frame's hidden vector and text token to its 8 agent codes."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.config = config
        self.inputs = _per_step(config.dim, config.depformer_dim)
        self.text_emb = TokenEmbedding(config.text_card + 1, config.depformer_dim)
        size, dim = config.card + 1, config.depformer_dim
        self.emb = ModuleList[TokenEmbedding](TokenEmbedding(size, dim) for _ in range(STEPS - 1))
        self.layers = ModuleList[DepthLayer](DepthLayer(config) for _ in range(config.depformer_num_layers))
        self.linears = _per_step(config.depformer_dim, config.card)

    def forward(self, hidden: Tensor, text: Tensor, choose: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Predict the codes in order.

        hidden: [B, 1, dim]; text: [B] int64. ``choose(step, logits [B, card] float32) → [B] int64``
        gives the token of each step, sampled or known. → [B, 8] int64.
        """
        past: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.layers]
        codes: list[Tensor] = []
        for step in range(STEPS):
            before = self.text_emb(text) if step == 0 else self.emb[step - 1](codes[-1])
            x = self.inputs[step](hidden) + before.to(hidden.dtype)[:, None]
            for layer, layer_past in zip(self.layers, past, strict=True):
                x = layer(x, step, layer_past)
            codes.append(choose(step, self.linears[step](x)[:, 0].float()))
        return torch.stack(codes, dim=1)

    def checkpoint_entries(self) -> list[WeightEntry]:
        c = self.config
        stored = c.dep_q
        entries = [plain_entry("depformer_text_emb.weight", self.text_emb, "weight")]
        for k in range(stored - 1):
            key = f"depformer_emb.{k}.weight"
            used = k < STEPS - 1
            entries.append(
                plain_entry(key, self.emb[k], "weight") if used else _unused(key, c.card + 1, c.depformer_dim)
            )
        for k in range(stored):
            if k < STEPS:
                entries.append(linear_entry(f"depformer_in.{k}.weight", self.inputs[k]))
                entries.append(linear_entry(f"linears.{k}.weight", self.linears[k]))
            else:
                entries.append(_unused(f"depformer_in.{k}.weight", c.depformer_dim, c.dim))
                entries.append(_unused(f"linears.{k}.weight", c.card, c.depformer_dim))
        for index, layer in enumerate(self.layers):
            entries += layer.checkpoint_entries(f"depformer.layers.{index}.", stored)
        return entries
