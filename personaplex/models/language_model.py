"""The language model: the two transformers that one checkpoint file holds."""

from __future__ import annotations

import math

import torch
from torch import nn

from personaplex.config import LMConfig
from personaplex.models.depth import DepthTransformer
from personaplex.models.temporal import TemporalTransformer
from personaplex.nn.weight_entry import WeightEntry


class LanguageModel(nn.Module):
    """Weights only; a conversation's state is an argument of its parts."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.config = config
        self.temporal = TemporalTransformer(config)
        self.depth = DepthTransformer(config)
        self.activation_dtype = torch.float32
        """The dtype the transformers compute in; set when weights are loaded."""

    def checkpoint_entries(self) -> list[WeightEntry]:
        """Every tensor of a published language-model file."""
        return self.temporal.checkpoint_entries() + self.depth.checkpoint_entries()

    def parameter_count(self) -> int:
        """Parameters a published file of this config holds."""
        return sum(math.prod(entry.shape) for entry in self.checkpoint_entries())
