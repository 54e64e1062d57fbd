"""The language model's part of a frame in compiled code, on the CPU: ``cpp/language_model.cpp``.

It computes what ``PlainPredictor`` does, and rounds to bfloat16 where that would, for the slots that
move only, in one call: weights are read once for all slots, and no time goes to the many small operators.
"""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from personaplex.engine.prediction import Prediction
from personaplex.models.language_model import LanguageModel
from personaplex.models.temporal import TokenEmbedding
from personaplex.native.library import Bound, address
from personaplex.native.structures import (
    CACHE_KINDS,
    FLOAT_KINDS,
    STEPS,
    STREAMS,
    FrameArguments,
    LanguageModelSpec,
    Layer,
    Matrix,
    Table,
)
from personaplex.nn.attention import KeepingState, KVCache
from personaplex.nn.layers import GatedFeedForward, RMSNorm, rope_frequencies
from personaplex.nn.linear import Linear
from personaplex.nn.sampling import SamplerState


class NativePredictor:
    """A model's weights bound to compiled code; the code must be there (``native_library``)."""

    needs_span = False
    prompt_kernel = None

    def __init__(self, lm: LanguageModel):
        self._lm = lm
        self._bound: _Bound | None = None

    def __call__(
        self, read: Tensor, forced: Tensor, uniform: Tensor, state: KeepingState, sampler: SamplerState,
        moves: Tensor, span: int,
    ) -> Prediction:  # fmt: skip
        """See ``Predictor``; rows of slots that do not move are zero."""
        if self._bound is None or self._bound.state is not state:
            self._bound = _Bound(self._lm, state)
        slots, c = read.shape[0], self._lm.config
        out = Prediction(
            torch.zeros(slots, dtype=torch.int64),
            torch.zeros(slots, STEPS, dtype=torch.int64),
            torch.zeros(slots, c.text_card),
            torch.zeros(slots, STEPS, c.card),
        )
        tensors = [
            *(t.contiguous() for t in (read, forced, uniform)),
            sampler.temperature, sampler.top_k, sampler.greedy, moves,
            out.text, out.codes, out.text_logits, out.audio_logits,
        ]  # fmt: skip
        self._bound.frame(FrameArguments(*map(address, tensors)))
        return out


class _Bound(Bound):
    """A model and one state as the C++ side knows them."""

    def __init__(self, lm: LanguageModel, state: KeepingState):
        super().__init__()
        self.state, self._lm = state, lm
        self.create("language_model", self._spec(lm, state))

    def frame(self, arguments: FrameArguments) -> None:
        self.library.personaplex_language_model_frame(self.handle, byref(arguments), torch.get_num_threads())

    # -- binding -----------------------------------------------------------------------------

    def _spec(self, lm: LanguageModel, state: KeepingState) -> LanguageModelSpec:
        c, temporal, depth = lm.config, lm.temporal, lm.depth
        keys = state.layers[0].keys
        numbers = dict(
            slots=state.slots, dim=c.dim, heads=c.num_heads, layers=c.num_layers, hidden=c.feedforward_dim,
            capacity=keys.shape[2], cache_kind=CACHE_KINDS[keys.dtype], text_card=c.text_card, card=c.card,
            depth_dim=c.depformer_dim, depth_heads=c.depformer_num_heads, depth_layers=c.depformer_num_layers,
            depth_hidden=c.depth_feedforward_dim, rounded=int(lm.activation_dtype is torch.bfloat16),
        )  # fmt: skip
        layers = [
            self._layer(layer.norm1, layer.norm2, layer.in_proj, layer.out_proj, layer.gating, cache)
            for layer, cache in zip(temporal.layers, state.layers, strict=True)
        ]
        depth_layers = [
            self._layer(layer.norm1, layer.norm2, layer.in_proj[k], layer.out_proj[k], layer.gating[k], None)
            for k in range(STEPS)
            for layer in depth.layers
        ]
        return LanguageModelSpec(
            **numbers,
            frequencies=self.keep(rope_frequencies(c.head_dim, c.max_period)),
            out_norm=self._norm(temporal.out_norm),
            position=self.keep(state.position),
            kept=self.keep(state.kept),
            held=self.keep(state.held),
            text_linear=self._matrix(temporal.text_linear),
            text_table=self._table(temporal.text_emb),
            tables=(Table * (STREAMS - 1))(*map(self._table, temporal.emb)),
            depth_text_table=self._table(depth.text_emb),
            depth_tables=(Table * (STEPS - 1))(*map(self._table, depth.emb)),
            inputs=(Matrix * STEPS)(*map(self._matrix, depth.inputs)),
            linears=(Matrix * STEPS)(*map(self._matrix, depth.linears)),
            temporal=self.array(Layer, layers),
            depth=self.array(Layer, depth_layers),
        )

    def _layer(
        self, norm1: RMSNorm, norm2: RMSNorm, in_proj: Linear, out_proj: Linear, gating: GatedFeedForward,
        cache: KVCache | None,
    ) -> Layer:  # fmt: skip
        return Layer(
            self._norm(norm1), self._norm(norm2), self._matrix(in_proj), self._matrix(out_proj),
            self._matrix(gating.linear_in), self._matrix(gating.linear_out),
            None if cache is None else self.keep(cache.keys), None if cache is None else self.keep(cache.values),
        )  # fmt: skip

    def _norm(self, norm: RMSNorm) -> int:
        return self.keep(norm.alpha.detach().float().contiguous())

    def _table(self, table: TokenEmbedding) -> Table:
        weight = table.weight.detach()
        weight = weight if weight.dtype in FLOAT_KINDS else weight.float()
        return Table(self.keep(weight.contiguous()), FLOAT_KINDS[weight.dtype])

    def _matrix(self, linear: Linear) -> Matrix:
        self._kept += linear.loaded.tensors().values()
        return linear.loaded.native_matrix()
