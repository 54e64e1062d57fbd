"""The temporal transformer: one position per frame, reading the sum of 17 token embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personaplex.config import LMConfig
from personaplex.nn.attention import KeepingState, Kept, append, attend_chunk, attend_step
from personaplex.nn.layers import GatedFeedForward, RMSNorm, apply_rope, rope_angles
from personaplex.nn.linear import Linear
from personaplex.nn.module_list import ModuleList
from personaplex.nn.streamed_layers import in_turn
from personaplex.nn.weight_entry import WeightEntry, empty_parameter, linear_entry, plain_entry

ZERO_TOKEN = -1
"""A token id whose embedding is exactly zero."""

PREFILL_CHUNK_FRAMES = 256


class TokenEmbedding(nn.Module):
    """A table that embeds −1 to zero."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.weight = empty_parameter(size, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [...] int64 in −1..size − 1 → [..., dim] in the table's dtype."""
        known = F.embedding(tokens.clamp(min=0), self.weight)
        return known * (tokens != ZERO_TOKEN).unsqueeze(-1).to(known.dtype)


class TemporalLayer(nn.Module):
    """Pre-norm residual layer: ``x + attn(norm1(x))``, ``x + ffn(norm2(x))``."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.heads = config.num_heads
        self.norm1, self.norm2 = RMSNorm(config.dim), RMSNorm(config.dim)
        self.in_proj = Linear(config.dim, 3 * config.dim)
        self.out_proj = Linear(config.dim, config.dim)
        self.gating = GatedFeedForward(config.dim, config.feedforward_dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, dim] → query, key and value, not rotated, each [B, H, T, D]."""
        packed = self.in_proj(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual sums after attention; attended [B, H, T, D]."""
        x = x + self.out_proj(attended.transpose(1, 2).flatten(2))
        return x + self.gating(self.norm2(x))

    def checkpoint_entries(self, prefix: str) -> list[WeightEntry]:
        return [
            plain_entry(f"{prefix}norm1.alpha", self.norm1, "alpha"),
            plain_entry(f"{prefix}norm2.alpha", self.norm2, "alpha"),
            linear_entry(f"{prefix}self_attn.in_proj_weight", self.in_proj),
            linear_entry(f"{prefix}self_attn.out_proj.weight", self.out_proj),
            *self.gating.checkpoint_entries(f"{prefix}gating."),
        ]


class TemporalTransformer(nn.Module):
    """Token columns in, hidden vectors and text logits out."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.config = config
        self.text_emb = TokenEmbedding(config.text_card + 1, config.dim)
        self.emb = ModuleList[TokenEmbedding](TokenEmbedding(config.card + 1, config.dim) for _ in range(config.n_q))
        self.layers = ModuleList[TemporalLayer](TemporalLayer(config) for _ in range(config.num_layers))
        self.out_norm = RMSNorm(config.dim)
        self.text_linear = Linear(config.dim, config.text_card)

    def initial_state(self, slots: int, context: int, dtype: torch.dtype, device: str) -> KeepingState:
        """An empty cache of ``context`` frames per slot."""
        c = self.config
        return KeepingState.empty(slots, c.num_layers, c.num_heads, context, c.head_dim, dtype, device)

    def embed(self, columns: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum of embeddings, in the dtype the transformer computes in: columns [B, T, 17] int64 → [B, T, dim]."""
        total = self.emb[0](columns[..., 1]).to(dtype)
        for stream in range(1, self.config.n_q):
            total = total + self.emb[stream](columns[..., 1 + stream]).to(dtype)
        return total + self.text_emb(columns[..., 0]).to(dtype)

    def step(self, x: Tensor, state: KeepingState, active: Tensor, span: int) -> tuple[Tensor, Tensor]:
        """One frame of every slot.

        x: [B, 1, dim] embeddings; active: [B] bool; span: bound on filled cache entries after this frame.
        → hidden [B, 1, dim] after the final norm, text logits [B, text_card] float32.
        """
        rotation = _Rotation(self.config, state, state.position[:, None], passed=span >= state.capacity)
        for layer, cache in zip(in_turn(self.layers), state.layers, strict=True):
            query, key, value, kept = rotation(*layer.project(x))
            x = layer.finish(x, attend_step(query, key, value, cache, state.position, active, span, kept))
        state.advance(1, active)
        hidden = self.out_norm(x)
        return hidden, self.text_linear(hidden)[:, 0].float()

    def prefill(self, x: Tensor, state: KeepingState, span: int) -> None:
        """Append T frames at once, equal to T calls of ``step`` whose logits are not needed.

        x: [B, T, dim] embeddings; every slot of ``state`` moves. span: bound on filled cache entries before.
        """
        active = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
        shortest_ring = state.capacity - int(state.kept.max())
        for block in x.split(min(PREFILL_CHUNK_FRAMES, shortest_ring), dim=1):
            self._prefill_block(block, state, active, span)
            span += block.shape[1]

    def _prefill_block(self, x: Tensor, state: KeepingState, active: Tensor, span: int) -> None:
        positions = state.position[:, None] + torch.arange(x.shape[1], device=x.device)
        rotation = _Rotation(self.config, state, positions, passed=span + x.shape[1] >= state.capacity)
        for layer, cache in zip(in_turn(self.layers), state.layers, strict=True):
            query, key, value, kept = rotation(*layer.project(x))
            if layer is self.layers[-1]:  # its output is not needed
                append(key, value, cache, state.position, active, kept)
            else:
                x = layer.finish(x, attend_chunk(query, key, value, cache, state.position, active, 1, span, kept))
        state.advance(x.shape[1], active)

    def checkpoint_entries(self) -> list[WeightEntry]:
        entries = [plain_entry("text_emb.weight", self.text_emb, "weight")]
        entries += [plain_entry(f"emb.{i}.weight", table, "weight") for i, table in enumerate(self.emb)]
        for index, layer in enumerate(self.layers):
            entries += layer.checkpoint_entries(f"transformer.layers.{index}.")
        entries.append(plain_entry("out_norm.alpha", self.out_norm, "alpha"))
        entries.append(linear_entry("text_linear.weight", self.text_linear))
        return entries


class _Rotation:
    """The rotary angles of a call's T positions, for all layers."""

    def __init__(self, config: LMConfig, state: KeepingState, positions: Tensor, passed: bool):
        """positions: [B, T] int64; passed: whether any of them may be past the window."""
        self._kept, self._held = state.kept, state.held
        self._angles = rope_angles(positions, config.head_dim, config.max_period)
        held = state.held_position(positions)
        self._held_angles = rope_angles(held, config.head_dim, config.max_period) if passed else None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Kept]:
        """Query and key rotated, the value as it is, and the query that held entries meet."""
        held = None if self._held_angles is None else apply_rope(query, *self._held_angles)
        kept = Kept(self._kept, self._held, held)
        return apply_rope(query, *self._angles), apply_rope(key, *self._angles), value, kept
