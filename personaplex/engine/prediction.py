"""The language model's part of a frame: from a token column to the next one's text and codes.

``PlainPredictor`` is the arithmetic as written in the models; other predictors answer the same
call with kernels of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from personaplex.engine.columns import UNKNOWN
from personaplex.models.language_model import LanguageModel
from personaplex.nn.attention import KeepingState
from personaplex.nn.sampling import SamplerState, draw
from personaplex.nn.weight import RowsKernel

TEXT_KIND, AUDIO_KIND = 0, 1
"""Columns of the sampler's options, by kind of token."""


@dataclass(frozen=True)
class Prediction:
    """The language model's prediction of column t."""

    text: Tensor  # [B] int64, drawn or known
    codes: Tensor  # [B, 8] int64, likewise
    text_logits: Tensor  # [B, text_card] float32
    audio_logits: Tensor  # [B, 8, card] float32


@dataclass(frozen=True)
class StepOutput:
    """Output of one frame for every slot; rows whose ``valid`` is false are undefined."""

    text: Tensor  # [B] int64
    tokens: Tensor  # [B, 17] int64, the whole returned frame
    valid: Tensor  # [B] bool
    text_logits: Tensor  # [B, text_card] float32, of the column this call predicted
    audio_logits: Tensor  # [B, 8, card] float32, likewise
    pcm: Tensor | None = None  # [B, frame_samples] float32, the agent's speech; NaN where a slot's numbers are lost


class Predictor(Protocol):
    """One frame of the language model, without a host decision inside: a CUDA graph can capture it."""

    needs_span: bool
    """Whether ``span`` must be a tight bound; if not, each slot's own position bounds what is read."""

    @property
    def prompt_kernel(self) -> RowsKernel | None:
        """A kernel of the device for the quantised products of a prompt, if there is one."""
        ...

    def __call__(
        self, read: Tensor, forced: Tensor, uniform: Tensor, state: KeepingState, sampler: SamplerState,
        moves: Tensor, span: int,
    ) -> Prediction:  # fmt: skip
        """read [B, 17] int64: the model's input, column t − 1; forced [B, 17] int64: what is known of column t,
        UNKNOWN where the model decides; uniform [B, 9] float32 in 0..1: the noise; moves [B] bool: which slots'
        caches grow; span: how many cache entries may be filled in any slot after this frame.
        """
        ...


class PlainPredictor:
    """The models themselves, on any device."""

    needs_span = True
    prompt_kernel = None

    def __init__(self, lm: LanguageModel):
        self.lm = lm

    def __call__(
        self, read: Tensor, forced: Tensor, uniform: Tensor, state: KeepingState, sampler: SamplerState,
        moves: Tensor, span: int,
    ) -> Prediction:  # fmt: skip
        embedded = self.lm.temporal.embed(read[:, None], self.lm.activation_dtype)
        hidden, text_logits = self.lm.temporal.step(embedded, state, moves, span)

        def choose(stream: int, logits: Tensor, kind: int) -> Tensor:
            drawn = draw(
                logits, uniform[:, stream], sampler.temperature[:, kind], sampler.top_k[:, kind], sampler.greedy
            )
            return torch.where(forced[:, stream] == UNKNOWN, drawn, forced[:, stream])

        text = choose(0, text_logits, TEXT_KIND)
        audio_logits: list[Tensor] = []

        def choose_code(step: int, logits: Tensor) -> Tensor:
            audio_logits.append(logits)
            return choose(1 + step, logits, AUDIO_KIND)

        codes = self.lm.depth(hidden, text, choose_code)
        return Prediction(text, codes, text_logits, torch.stack(audio_logits, dim=1))
