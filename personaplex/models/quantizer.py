"""The split residual vector quantiser of Mimi (Défossez et al. 2024).

One semantic codebook and a residual chain of acoustic ones quantise the same latent, each side
behind its own projection; decoding adds both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personaplex.config import MimiConfig
from personaplex.nn.module_list import ModuleList
from personaplex.nn.weight_entry import WeightEntry, empty_parameter, plain_entry

MIN_CLUSTER_USAGE = 1e-5


class Codebook(nn.Module):
    """Codebook vectors, stored as the sums and counts of the training vectors assigned to them."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.embedding_sum = empty_parameter(size, dim)
        self.cluster_usage = empty_parameter(size)
        self._vectors: Tensor | None = None

    @property
    def vectors(self) -> Tensor:
        """[size, dim] float32; computed once, after the weights are there."""
        if self._vectors is None:
            self._vectors = self.embedding_sum / self.cluster_usage.clamp(min=MIN_CLUSTER_USAGE)[:, None]
        return self._vectors

    def encode(self, x: Tensor) -> Tensor:
        """Nearest vector by Euclidean distance: x [..., dim] → [...] int64."""
        distance = self.vectors.square().sum(dim=1) - 2 * (x @ self.vectors.t())
        return distance.argmin(dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes [...] int64 → [..., dim]."""
        return F.embedding(codes, self.vectors)


class ResidualQuantizer(nn.Module):
    """A chain of codebooks behind one projection; each quantises the residual of the one before."""

    def __init__(self, config: MimiConfig, used: int, stored: int):
        super().__init__()
        dim = config.codebook_dim
        self.stored = stored
        self.input_proj = empty_parameter(dim, config.dimension, 1)
        self.output_proj = empty_parameter(config.dimension, dim, 1)
        self.codebooks = ModuleList[Codebook](Codebook(config.codebook_size, dim) for _ in range(used))

    def encode(self, latent: Tensor) -> Tensor:
        """latent [B, T, dimension] → codes [B, used, T] int64."""
        residual = latent @ self.input_proj.squeeze(2).t()
        codes = []
        for codebook in self.codebooks:
            codes.append(codebook.encode(residual))
            residual = residual - codebook.decode(codes[-1])
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, used, T] → [B, T, dimension]."""
        total = self.codebooks[0].decode(codes[:, 0])
        for index in range(1, len(self.codebooks)):
            total = total + self.codebooks[index].decode(codes[:, index])
        return total @ self.output_proj.squeeze(2).t()

    def checkpoint_entries(self, prefix: str) -> list[WeightEntry]:
        entries = [plain_entry(f"{prefix}{name}.weight", self, name) for name in ("input_proj", "output_proj")]
        size, dim = self.codebooks[0].embedding_sum.shape
        for index in range(self.stored):
            base = f"{prefix}vq.layers.{index}._codebook."
            entries.append(WeightEntry(f"{base}_initialized", (1,), used=False))
            if index < len(self.codebooks):
                book = self.codebooks[index]
                entries += [plain_entry(base + name, book, name) for name in ("embedding_sum", "cluster_usage")]
            else:
                entries.append(WeightEntry(f"{base}embedding_sum", (size, dim), used=False))
                entries.append(WeightEntry(f"{base}cluster_usage", (size,), used=False))
        return entries


class SplitQuantizer(nn.Module):
    """Codebook 0 (semantic) beside codebooks 1… (acoustic), on the same latent."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        self.rvq_first = ResidualQuantizer(config, used=1, stored=1)
        self.rvq_rest = ResidualQuantizer(config, used=config.num_codebooks - 1, stored=config.num_codebooks_stored - 1)

    def encode(self, latent: Tensor) -> Tensor:
        """latent [B, T, dimension] float32 → codes [B, num_codebooks, T] int64."""
        return torch.cat([self.rvq_first.encode(latent), self.rvq_rest.encode(latent)], dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, num_codebooks, T] int64 → [B, T, dimension] float32."""
        return self.rvq_first.decode(codes[:, :1]) + self.rvq_rest.decode(codes[:, 1:])

    def checkpoint_entries(self, prefix: str) -> list[WeightEntry]:
        return self.rvq_first.checkpoint_entries(f"{prefix}rvq_first.") + self.rvq_rest.checkpoint_entries(
            f"{prefix}rvq_rest."
        )
