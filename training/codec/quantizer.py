"""Residual vector quantisation, trained by moving averages: codebook 0 beside a chain of the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.codec import parallel
from training.module_lists import of_class

_DECAY = 0.99
_REVIVE_EVERY_STEPS = 10
_DEAD_SHARE = 0.1  # of a fair share of the vectors
_LEAST_USAGE = 1e-5


class Codebook(nn.Module):
    """`size` vectors; each is `embedding_sum / cluster_usage`, as published."""

    cluster_usage: Tensor
    embedding_sum: Tensor

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.updates = 0
        self.register_buffer("cluster_usage", torch.ones(size))
        self.register_buffer("embedding_sum", torch.randn(size, dim))

    def vectors(self) -> Tensor:
        """[size, dim] float32."""
        return self.embedding_sum / self.cluster_usage.clamp(min=_LEAST_USAGE)[:, None]

    def nearest(self, x: Tensor, vectors: Tensor | None = None) -> Tensor:
        """x: [N, dim] -> [N] int64, by Euclidean distance."""
        vectors = self.vectors() if vectors is None else vectors
        return (vectors.pow(2).sum(1) - 2 * x @ vectors.t()).argmin(1)

    @torch.no_grad()
    def cluster(self, x: Tensor, rounds: int = 25) -> Tensor:
        """Sets the codebook by k-means on x: [N, dim]; returns x quantised."""
        vectors = x[torch.randperm(len(x))[: self.size]].clone()
        if len(vectors) < self.size:
            vectors = vectors[torch.randint(0, len(vectors), (self.size,))]
        for _ in range(rounds):
            counts, sums = self._gather(x, self.nearest(x, vectors))
            fresh = x[torch.randint(0, len(x), (self.size,))]
            vectors = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], fresh)
        self.cluster_usage.copy_(counts.clamp(min=0.5) * 400 / len(x))
        self.embedding_sum.copy_(vectors * self.cluster_usage[:, None])
        return vectors[self.nearest(x, vectors)]

    def _gather(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.bincount(codes, minlength=self.size).float()
        return counts, torch.zeros(self.size, x.shape[1]).index_add_(0, codes, x)

    @torch.no_grad()
    def quantize(self, x: Tensor, *, update: bool = False) -> tuple[Tensor, Tensor]:
        """x: [N, dim] float32 -> (nearest vectors [N, dim], codes [N]); `update` moves the codebook."""
        vectors = self.vectors()
        codes = self.nearest(x, vectors)
        if update:
            counts, sums = (parallel.sum_(part) for part in self._gather(x, codes))
            self.cluster_usage.mul_(_DECAY).add_(counts, alpha=1 - _DECAY)
            self.embedding_sum.mul_(_DECAY).add_(sums, alpha=1 - _DECAY)
            self.updates += 1
            if self.updates % _REVIVE_EVERY_STEPS == 0:
                self._revive(x)
        return vectors[codes], codes

    def _revive(self, x: Tensor) -> None:
        """Moves codes that hardly anything uses to vectors of this batch."""
        dead = self.cluster_usage < _DEAD_SHARE * self.cluster_usage.mean()
        count = int(dead.sum())
        if count == 0:
            return
        usage = 0.5 * float(self.cluster_usage.mean())
        self.cluster_usage[dead] = usage
        self.embedding_sum[dead] = x[torch.randint(0, len(x), (count,))] * usage
        parallel.from_first_(self.embedding_sum)

    def perplexity(self) -> float:
        share = self.cluster_usage / self.cluster_usage.sum()
        return float(torch.exp(-(share * torch.log(share + 1e-9)).sum()))


@dataclass
class Quantized:
    """`latent`: [B, T, dim] for the decoder. `semantic`: [B, T, dim], codebook 0's part. `codes`: [B, n, T] int64."""

    latent: Tensor
    semantic: Tensor
    codes: Tensor | None = None
    commitment: Tensor | float = 0.0


class Quantizer(nn.Module):
    def __init__(self, dim: int, codebook_dim: int, codebooks: int, size: int) -> None:
        super().__init__()
        self.first_in = nn.Linear(dim, codebook_dim, bias=False)
        self.first_out = nn.Linear(codebook_dim, dim, bias=False)
        self.rest_in = nn.Linear(dim, codebook_dim, bias=False)
        self.rest_out = nn.Linear(codebook_dim, dim, bias=False)
        self.first = Codebook(codebook_dim, size)
        self.rest = nn.ModuleList(Codebook(codebook_dim, size) for _ in range(codebooks - 1))

    @property
    def books(self) -> list[Codebook]:
        """All codebooks, the semantic one first."""
        return [self.first, *of_class(self.rest, Codebook)]

    def unquantized(self, latent: Tensor) -> Quantized:
        """The latent without quantisation, as a perfect codebook would give it."""
        semantic = self.first_out(self.first_in(latent))
        return Quantized(semantic + self.rest_out(self.rest_in(latent)), semantic)

    @torch.no_grad()
    def cluster(self, latent: Tensor) -> float:
        """Initialise all codebooks by k-means on latent: [N, dim]; returns the share of energy left over."""
        self.first.cluster(self.first_in(latent))
        whole = self.rest_in(latent)
        left = whole
        for codebook in self.books[1:]:
            left = left - codebook.cluster(left)
        return float(left.pow(2).sum() / whole.pow(2).sum())

    def forward(
        self, latent: Tensor, *, update: bool = False, used: Tensor | None = None, raw: Tensor | None = None
    ) -> Quantized:
        """latent: [B, T, dim] float32. `used`: [B] codebooks a sequence may use; `raw`: [B] bool, left unquantised."""
        batch, steps, _ = latent.shape
        first, rest = self.first_in(latent).flatten(0, 1), self.rest_in(latent).flatten(0, 1)
        vectors, code = self.first.quantize(first.detach(), update=update)
        codes, commitment = [code], (first - vectors).pow(2).mean()
        first_q = first + (vectors - first).detach()
        left, summed = rest.detach(), torch.zeros_like(rest)
        for index, codebook in enumerate(self.books[1:], start=1):
            vectors, code = codebook.quantize(left, update=update)
            left = left - vectors
            codes.append(code)
            commitment = commitment + (rest - (rest.detach() - left)).pow(2).mean() / len(self.rest)
            summed = summed + (vectors if used is None else vectors * (used > index).repeat_interleave(steps)[:, None])
        rest_q = rest + (summed - rest).detach()
        semantic = self.first_out(first_q)
        if raw is not None:
            plain = raw.repeat_interleave(steps)[:, None]
            first_q, rest_q = torch.where(plain, first, first_q), torch.where(plain, rest, rest_q)
        out = self.first_out(first_q) + self.rest_out(rest_q)
        shape = (batch, steps, -1)
        all_codes = torch.stack(codes, 1).view(batch, steps, -1).transpose(1, 2)
        return Quantized(out.view(shape), semantic.view(shape), all_codes, commitment)

    @torch.no_grad()
    def encode(self, latent: Tensor) -> Tensor:
        """latent: [B, T, dim] -> codes [B, codebooks, T] int64."""
        return self(latent).codes

    def decode(self, codes: Tensor) -> Tensor:
        """codes: [B, up to codebooks, T] -> latent [B, T, dim]."""
        latent = self.first_out(self.first.vectors()[codes[:, 0]])
        for index, codebook in enumerate(self.books[1 : codes.shape[1]], start=1):
            latent = latent + self.rest_out(codebook.vectors()[codes[:, index]])
        return latent
