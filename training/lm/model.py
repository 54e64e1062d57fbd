"""The language model, written to be trained fast on a CPU.

The same function as the published architecture, with two differences of form: all 17 embedding
tables are one table read by `embedding_bag`, and a depth layer keeps its per-step weights stacked
so that all steps of all frames are a few batched products. `export.py` writes the published layout.
Shapes: B dialogues, T columns, D temporal width, N frames for the depth transformer, K depth steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personaplex.config import AGENT, NUM_AGENT_CODEBOOKS, LMConfig


class RmsNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return (y * self.alpha * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-8)).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on interleaved pairs. x: [B, T, H, d]; cos, sin: [B or 1, T, 1, d/2] float32."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


LONGEST_IN_FULL = 640
COMPILED_SHAPES = 64  # batches of a run have about a dozen, each with and without gradients


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, H, T, d] each -> [B, H, T, d].

    In bfloat16 on a processor the products are written out, up to LONGEST_IN_FULL columns: PyTorch's own kernel takes
    twice as long there (288 columns, forwards and back).
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or q.shape[2] > LONGEST_IN_FULL:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return attention_in_full(q, k, v)


def attention_in_full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention as products, the softmax in float32: [B, H, T, d] each -> [B, H, T, d]."""
    length = q.shape[2]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[3] ** -0.5
    return scores.masked_fill(future, -torch.inf).softmax(-1).to(v.dtype) @ v


@dataclass
class LayerCache:
    """Keys and values of one temporal layer so far: [B, H, t, d]."""

    keys: Tensor
    values: Tensor


class TemporalLayer(nn.Module):
    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, config.feedforward_dim
        self.num_heads, self.context = config.num_heads, config.context
        self.norm1, self.norm2 = RmsNorm(dim), RmsNorm(dim)
        self.in_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)
        self.linear_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.linear_out = nn.Linear(hidden, dim, bias=False)
        depth_gain = 1 / math.sqrt(2 * config.num_layers)
        for layer in (self.in_proj, self.linear_in, self.out_proj, self.linear_out):
            gain = depth_gain if layer in (self.out_proj, self.linear_out) else 1.0
            nn.init.normal_(layer.weight, std=gain * layer.in_features**-0.5)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None) -> tuple[Tensor, LayerCache]:
        """x: [B, T, D]; with a cache, T new columns after those it holds."""
        batch, length, dim = x.shape
        q, k, v = self.in_proj(self.norm1(x)).view(batch, length, 3, self.num_heads, -1).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (rotate(q, cos, sin), rotate(k, cos, sin), v))
        if cache is not None:
            k, v = torch.cat([cache.keys, k], 2), torch.cat([cache.values, v], 2)
        window = self.context - 1  # a published ring of `context` slots shows one less
        if cache is None and length <= window:
            y = causal_attention(q, k, v)
        else:
            row = torch.arange(k.shape[2] - length, k.shape[2])[:, None]
            col = torch.arange(k.shape[2])
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=(col <= row) & (col > row - window))
        x = x + self.out_proj(y.transpose(1, 2).reshape(batch, length, dim))
        gate, value = self.linear_in(self.norm2(x)).chunk(2, -1)
        return x + self.linear_out(F.silu(gate) * value), LayerCache(k, v)


class DepthLayer(nn.Module):
    """One layer of the depth transformer; every step has its own weights, stored [K, in, out]."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        dim, hidden, steps = config.depformer_dim, config.depth_feedforward_dim, config.dep_q
        self.num_heads = config.depformer_num_heads
        self.norm1, self.norm2 = RmsNorm(dim), RmsNorm(dim)
        gain = 1 / math.sqrt(2 * config.depformer_num_layers)
        self.in_proj = nn.Parameter(torch.randn(steps, dim, 3 * dim) * dim**-0.5)
        self.out_proj = nn.Parameter(torch.randn(steps, dim, dim) * dim**-0.5 * gain)
        self.linear_in = nn.Parameter(torch.randn(steps, dim, 2 * hidden) * dim**-0.5)
        self.linear_out = nn.Parameter(torch.randn(steps, hidden, dim) * hidden**-0.5 * gain)

    def forward(self, x: Tensor) -> Tensor:
        """x: [K, N, d], steps 0..K-1 of N frames."""
        steps, frames, dim = x.shape

        def product(inputs: Tensor, weight: Tensor) -> Tensor:
            return torch.bmm(inputs, weight[:steps].to(inputs.dtype))

        q, k, v = product(self.norm1(x), self.in_proj).view(steps, frames, 3, self.num_heads, -1).unbind(2)
        q, k, v = (t.permute(1, 2, 0, 3) for t in (q, k, v))  # [N, H, K, d]
        y = attention_in_full(q, k, v)
        x = x + product(y.permute(2, 0, 1, 3).reshape(steps, frames, dim), self.out_proj)
        gate, value = product(self.norm2(x), self.linear_in).chunk(2, -1)
        return x + product(F.silu(gate) * value, self.linear_out)


class LanguageModel(nn.Module):
    """Reads columns of 17 tokens, predicts the next column's text token and agent codes."""

    row_offset: Tensor

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        depth_dim, steps, card = config.depformer_dim, config.dep_q, config.card
        sizes = [config.text_card + 1] + [card + 1] * config.n_q
        self.register_buffer("row_offset", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)
        self.absent = sum(sizes)  # the row that stands for -1: it is never read
        self.embedding = nn.Parameter(torch.randn(self.absent + 1, config.dim) * 0.25)
        with torch.no_grad():
            self.embedding[: config.text_card + 1].mul_(4.0)  # one text token beside 16 codes
            self.embedding[self.absent].zero_()
        self.layers = nn.ModuleList(TemporalLayer(config) for _ in range(config.num_layers))
        self.out_norm = RmsNorm(config.dim)
        self.text_linear = nn.Linear(config.dim, config.text_card, bias=False)
        self.depth_in = nn.Parameter(torch.randn(steps, config.dim, depth_dim) * config.dim**-0.5)
        self.depth_text = nn.Parameter(torch.randn(config.text_card + 1, depth_dim))
        self.depth_codes = nn.Parameter(torch.randn((steps - 1) * (card + 1) + 1, depth_dim))
        with torch.no_grad():
            self.depth_codes[-1].zero_()
        self.depth_layers = nn.ModuleList(DepthLayer(config) for _ in range(config.depformer_num_layers))
        self.depth_out = nn.Parameter(torch.randn(steps, depth_dim, card) * depth_dim**-0.5 * 0.5)

    def compile_layers(self) -> None:
        """Compiles the temporal layers for training, each shape of a batch anew: a sixth of a step's time on a CPU."""
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_SHAPES)
        for layer in self.layers:
            layer.forward = torch.compile(layer.forward, dynamic=False)

    def embed(self, columns: Tensor) -> Tensor:
        """columns: [B, T, 17] int64, -1 for nothing -> [B, T, D], the sum over the rows."""
        batch, length, rows = columns.shape
        index = torch.where(columns < 0, self.absent, columns + self.row_offset)
        summed = F.embedding_bag(index.view(-1, rows), self.embedding, mode="sum", padding_idx=self.absent)
        return summed.view(batch, length, -1)

    def hidden(
        self,
        columns: Tensor,
        positions: Tensor | None = None,
        cache: list[LayerCache] | None = None,
        between: list[Tensor] | None = None,
    ) -> tuple[Tensor, list[LayerCache]]:
        """columns: [B, T, 17]; positions: [B, T] (default: counted on) -> hidden of the next columns.

        `between` collects what each layer gave, [B, T, D].
        """
        x = self.embed(columns)
        before = cache[0].keys.shape[2] if cache else 0
        if positions is None:
            positions = torch.arange(before, before + columns.shape[1])[None]
        cos, sin = self._angles(positions)
        new_cache = []
        for index, layer in enumerate(self.layers):
            x, kept = layer(x, cos, sin, cache[index] if cache else None)
            new_cache.append(kept)
            if between is not None:
                between.append(x)
        return self.out_norm(x), new_cache

    def lower(self, columns: Tensor, count: int) -> Tensor:
        """columns [B, T, 17] -> the output of the first `count` layers, [B, T, D]."""
        x = self.embed(columns)
        cos, sin = self._angles(torch.arange(columns.shape[1])[None])
        for layer in self.layers[:count]:
            x, _ = layer(x, cos, sin, None)
        return x

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions: [B, T] -> cosines and sines, [B, T, 1, head_dim / 2]."""
        head_dim = self.config.head_dim
        frequency = self.config.max_period ** (-torch.arange(0, head_dim, 2).float() / head_dim)
        angle = positions.float()[..., None, None] * frequency
        return angle.cos(), angle.sin()

    def depth_logits(self, hidden: Tensor, text: Tensor, codes: Tensor) -> Tensor:
        """hidden: [N, D], text: [N], codes: [N, k] known so far (-1: nothing) -> [min(K, k + 1), N, card]."""
        steps = min(self.config.dep_q, codes.shape[1] + 1)
        fed = F.embedding(text, self.depth_text)[None]
        if steps > 1:
            known = codes[:, : steps - 1]
            offset = torch.arange(steps - 1) * (self.config.card + 1)
            index = torch.where(known < 0, len(self.depth_codes) - 1, known + offset)
            before = F.embedding(index, self.depth_codes, padding_idx=len(self.depth_codes) - 1)
            fed = torch.cat([fed, before.transpose(0, 1)], 0)
        weight = self.depth_in[:steps].to(hidden.dtype)
        x = torch.bmm(hidden[None].expand(steps, -1, -1), weight) + fed.to(hidden.dtype)
        for layer in self.depth_layers:
            x = layer(x)
        return torch.bmm(x, self.depth_out[:steps].to(x.dtype))


class Listener(nn.Module):
    """Reads the user's words from the middle of the temporal transformer: a teacher, not a part of the model.

    One answer a question is too little to learn to listen from; a word every few frames is not.
    """

    def __init__(self, config: LMConfig, num_words: int) -> None:
        super().__init__()
        self.layers = config.num_layers // 2  # those above can use what is understood here
        self.norm = RmsNorm(config.dim)
        self.linear = nn.Linear(config.dim, num_words, bias=False)

    def loss(self, x: Tensor, words: Tensor) -> Tensor:
        """x: [B, T, D], what layer `layers` gave; words: [B, T] int64, -1 where nobody speaks."""
        said = words >= 0
        if not bool(said.any()):
            return torch.zeros(())
        return F.cross_entropy(self.linear(self.norm(x[said])).float(), words[said])


CODE_WEIGHTS = (1.0, 1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.05)
"""Of the codebooks' losses, after how much of the sound is lost when one is drawn by the model instead of given."""

STRESSED_CODEBOOKS = 3
"""Those for which a frame's own weight counts: what fills a slot is only memorised in the later ones."""


@dataclass
class Losses:
    """`text`, `listening`: scalars. `codes`: [K], one per codebook. Cross-entropies in nats."""

    text: Tensor
    codes: Tensor
    listening: Tensor

    def total(self) -> Tensor:
        """The weighted sum; the codebooks that are heard most weigh most."""
        return self.text + self.listening + (self.codes * self.codes.new_tensor(CODE_WEIGHTS)).sum()


@dataclass
class Batch:
    """Dialogues as token columns, with what the loss looks at.

    `inputs`: [B, T, 17], the columns as fed (some agent codes hidden, -1); `targets`: [B, T, 17], the next ones.
    `positions`: [B, T]. `text_weight`: [B, T]. `depth_frames`: [N] flat indices into B·T;
    `user_words`: [B, T] what the user is saying, or -1. `depth_codes`: [N, 7] the codes fed to the depth
    steps; `depth_weight`: [N].
    """

    inputs: Tensor
    targets: Tensor
    positions: Tensor
    text_weight: Tensor
    user_words: Tensor
    depth_frames: Tensor
    depth_codes: Tensor
    depth_weight: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})


def losses(model: LanguageModel, batch: Batch, listener: Listener | None = None) -> Losses:
    between: list[Tensor] = []
    hidden, _ = model.hidden(batch.inputs, batch.positions, between=between)
    listening = torch.zeros(()) if listener is None else listener.loss(between[listener.layers - 1], batch.user_words)
    text = batch.targets[..., 0]
    text_loss = F.cross_entropy(model.text_linear(hidden).float().flatten(0, 1), text.flatten(), reduction="none")
    text_weight = batch.text_weight.flatten()
    text_mean = (text_loss * text_weight).sum() / text_weight.sum().clamp(min=1.0)
    if len(batch.depth_frames) == 0:
        return Losses(text_mean, torch.zeros(NUM_AGENT_CODEBOOKS), listening)
    rows = hidden.flatten(0, 1)[batch.depth_frames]
    wanted = batch.targets.flatten(0, 1)[batch.depth_frames]
    logits = model.depth_logits(rows, wanted[:, 0], batch.depth_codes).float()
    codes = wanted[:, AGENT].transpose(0, 1)  # [K, N]
    code_loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none")
    weight = batch.depth_weight.repeat(NUM_AGENT_CODEBOOKS, 1)
    weight[STRESSED_CODEBOOKS:].clamp_(max=1.0)
    codes = (code_loss.view(NUM_AGENT_CODEBOOKS, -1) * weight).sum(1) / weight.sum(1)
    return Losses(text=text_mean, listening=listening, codes=codes)


def load_model(path: Path) -> LanguageModel:
    """The language model of a checkpoint, ready to run."""
    state = torch.load(path, map_location=torch.get_default_device(), weights_only=True)
    config = LMConfig(**{**state["config"], "delays": tuple(state["config"]["delays"])})
    model = LanguageModel(config).eval()
    model.load_state_dict(state["model"])
    return model
