"""The language model's part of a frame through the kernels of ``triton_kernels.py``.

Five launches a temporal layer (norm and query/key/value; rotary positions, cache and attention;
output and residual; norm, gate and value; down and residual), as many a depth step's layer, and one
for each token. Every slot's own position bounds what is read of its cache, so one CUDA graph serves
an empty cache and a full one, and what a slot computes does not depend on its neighbours.

One slot's products run in float32 next to the weights' stream; several slots' on the tensor cores.
An engine with room for several slots uses the latter always, so that the number of slots in a graph
does not change a conversation's roundings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from personaplex.config import CACHE_SCALE_BYTES
from personaplex.engine.backends import triton_attention as attention
from personaplex.engine.backends import triton_kernels as kernels
from personaplex.engine.prediction import AUDIO_KIND, TEXT_KIND, Prediction
from personaplex.models.depth import STEPS
from personaplex.models.language_model import LanguageModel
from personaplex.nn.attention import KeepingState, KVCache
from personaplex.nn.layers import RMS_NORM_EPS, RMSNorm, rope_angles
from personaplex.nn.linear import Linear
from personaplex.nn.packing import WeightFormat
from personaplex.nn.sampling import SamplerState
from personaplex.nn.streamed_layers import in_turn
from personaplex.nn.weight import RowsKernel, Weight

STREAMS = 17
DRAWS = 1 + STEPS
"""Tokens a frame decides: the text and each agent code."""

MOST_SLOTS = 128
FEWER_ROWS = 64
"""Rows of activations that a program holds at once where twice as many do not fit into the GPU's shared memory."""

SHARED_BYTES = 128 * 1024
"""Shared memory that 128 rows need."""

PROMPT_ROWS = 256
"""Rows of a prompt up to which the kernel multiplies; more are multiplied with the dequantised weight."""

TUNED_ROWS = 32
"""Rows up to which a measured tile is used: it was measured at 16 and may need too much shared memory at 128."""

CHUNK_FRAMES = 128
"""Cache entries one program of the attention reads; fixed, so that sums do not depend on other conversations."""

_STORED = {WeightFormat.INT8: kernels.INT8, WeightFormat.INT4: kernels.INT4}
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class Tile:
    """Partition of a product: rows and columns of the weight a program holds at once, warps, loads in flight."""

    rows: int
    columns: int
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class KernelOptions:
    """Options tuned on a machine; the defaults are calculated for a Hopper GPU."""

    dependent_launch: bool = False
    """Start each kernel while the one before it ends (needs compute capability 9.0)."""
    tiles: dict[tuple[str, int, int, bool], Tile] = field(default_factory=dict)
    """Measured tiles: (format, rows of the weight, columns, for one slot) → tile."""

    def tile(self, weight: Linear, gated: bool, one_slot: bool) -> Tile:
        key = (weight.loaded.format.value, weight.out_features, weight.in_features, one_slot)
        return self.tiles.get(key) or default_tile(weight, gated, one_slot)


def default_tile(weight: Linear | Weight, gated: bool, one_slot: bool) -> Tile:
    """Enough programs to fill the GPU several times, and 16-byte loads in each thread."""
    outputs = weight.out_features // (2 if gated else 1)
    widest = triton.next_power_of_2(weight.in_features)
    if one_slot:
        rows = min(max(_power_of_2_at_most(outputs // 512), 2), 8)
        return Tile(rows, max(min(8192 // (2 * rows if gated else rows), widest), 16))
    return Tile(16 if outputs <= 2048 or gated else 32, max(min(128, widest), 16), stages=4)


def _power_of_2_at_most(value: int) -> int:
    return 1 << max(value.bit_length() - 1, 0)


def why_not(lm: LanguageModel, slots: int, cache_dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run this model; None if they can."""
    c = lm.config
    heads = (c.head_dim, c.depformer_dim // c.depformer_num_heads)
    if any(width & (width - 1) for width in heads):
        return f"heads of {heads} numbers are not powers of two"
    if slots > MOST_SLOTS:
        return f"{slots} slots are more than {MOST_SLOTS}"
    if cache_dtype not in (*_TYPES, torch.int8):
        return f"a cache of {cache_dtype} is not known to the kernels"
    return None


class PromptKernel:
    """The ``RowsKernel`` for a quantised weight's product in a prompt."""

    max_rows = PROMPT_ROWS

    def multiply(self, rows: Tensor, weight: Weight) -> Tensor:
        """rows [n ≤ max_rows, in] bfloat16 → [n, out] bfloat16."""
        x = rows.contiguous()
        out = x.new_empty(x.shape[0], weight.out_features)
        data, scale, fixed = _operands(weight, False, False, default_tile(weight, False, False))
        sizes = (weight.out_features, weight.in_features, data.shape[1], data.shape[0])
        with torch.cuda.device_of(x):
            _many_rows(x, data, x if scale is None else scale, x, out, sizes, fixed | dict(PDL=False), FEWER_ROWS)
        return out


class TritonPredictor:
    """A ``Predictor`` that reads the model's own tensors in place."""

    needs_span = False
    prompt_kernel: RowsKernel = PromptKernel()

    def __init__(
        self, lm: LanguageModel, *, slots: int, context: int, device: str, options: KernelOptions | None = None
    ):
        self.lm, self._options, self._one_slot = lm, options or KernelOptions(), slots == 1
        self._launch = dict(PDL=self._options.dependent_launch)
        if self._options.dependent_launch:
            self._launch["launch_pdl"] = True
        roomy = lm.activation_dtype is not torch.float32 and _shared_bytes(device) >= SHARED_BYTES
        self._most_rows = MOST_SLOTS if roomy else FEWER_ROWS
        c = lm.config
        self._chunks = -(-context // CHUNK_FRAMES)
        scratch = (slots, c.num_heads, self._chunks)
        self._partial = torch.empty(*scratch, c.head_dim, device=device)
        self._stats = torch.empty(*scratch, 2, device=device)
        self._arrived = torch.zeros(slots, c.num_heads, dtype=torch.int32, device=device)
        addresses = [table.weight.data_ptr() for table in lm.temporal.emb]
        self._tables = torch.tensor(addresses, dtype=torch.int64, device=device)
        for module in lm.modules():
            if isinstance(module, Linear):
                module.use_row_layout_()

    def __call__(
        self, read: Tensor, forced: Tensor, uniform: Tensor, state: KeepingState, sampler: SamplerState,
        moves: Tensor, span: int,
    ) -> Prediction:  # fmt: skip
        with torch.cuda.device_of(read):  # where Triton launches
            hidden, text_logits = self.temporal(read, state, moves)
            tokens = torch.empty(read.shape[0], DRAWS, dtype=torch.int64, device=read.device)
            noise = (uniform, sampler, forced, tokens)
            audio_logits = self._depth(hidden, text_logits, noise)
        return Prediction(tokens[:, 0], tokens[:, 1:], text_logits, audio_logits)

    def temporal(self, read: Tensor, state: KeepingState, moves: Tensor) -> tuple[Tensor, Tensor]:
        """read [B, 17] int64 → hidden [B, dim] after the final norm, text logits [B, text_card] float32."""
        model, c = self.lm.temporal, self.lm.config
        x = self._embed(read)
        positions = state.position[:, None]
        angles = [rope_angles(at, c.head_dim, c.max_period) for at in (positions, state.held_position(positions))]
        for layer, cache in zip(in_turn(model.layers), state.layers, strict=True):
            qkv = self.linear(x, layer.in_proj, norm=layer.norm1)
            attended = self._attend(qkv, cache, state, moves, *angles)
            x = self.linear(attended, layer.out_proj, residual=x)
            gated = self.linear(x, layer.gating.linear_in, norm=layer.norm2, gated=True)
            x = self.linear(gated, layer.gating.linear_out, residual=x)
        state.advance(1, moves)
        hidden = self.norm(x, model.out_norm)
        logits = torch.empty(x.shape[0], c.text_card, device=x.device)
        return hidden, self.linear(hidden, model.text_linear, out=logits)

    def _depth(self, hidden: Tensor, text_logits: Tensor, noise: tuple) -> Tensor:
        """Draw the text token and the 8 codes into the noise's tokens → audio logits [B, 8, card] float32."""
        model, c, slots = self.lm.depth, self.lm.config, hidden.shape[0]
        logits = torch.empty(slots, STEPS, c.card, device=hidden.device)
        scratch = hidden.new_empty(len(model.layers), STEPS, slots, 3 * c.depformer_dim)
        token_embedding = hidden.new_empty(slots, c.depformer_dim)
        self._draw(text_logits, noise, 0, TEXT_KIND, model.text_emb.weight, token_embedding)
        for step in range(STEPS):
            x = self.linear(hidden, model.inputs[step], residual=token_embedding)
            for layer, qkv in zip(model.layers, scratch, strict=True):
                self.linear(x, layer.in_proj[step], norm=layer.norm1, out=qkv[step])
                x = self.linear(self._depth_attend(qkv, step), layer.out_proj[step], residual=x)
                gating = layer.gating[step]
                gated = self.linear(x, gating.linear_in, norm=layer.norm2, gated=True)
                x = self.linear(gated, gating.linear_out, residual=x)
            self.linear(x, model.linears[step], out=logits[:, step])
            table = model.emb[step].weight if step + 1 < STEPS else None
            self._draw(logits[:, step], noise, 1 + step, AUDIO_KIND, table, token_embedding)
        return logits

    # -- launches ----------------------------------------------------------------------------

    def linear(
        self, x: Tensor, weight: Linear, *, norm: RMSNorm | None = None, gated: bool = False,
        residual: Tensor | None = None, out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """x [B, K] → ``out`` [B, N], of x's type if not given: ``W · norm(x)``, gated or with a residual [B, N].

        gated: W has 2N rows, a gate's and a value's: ``silu(gate) · value``.
        """
        outputs = weight.out_features // (2 if gated else 1)
        out = x.new_empty(x.shape[0], outputs) if out is None else out
        tile = self._options.tile(weight, gated, self._one_slot)
        if x.shape[0] > TUNED_ROWS:
            tile = default_tile(weight, gated, False)
        data, scale, fixed = _operands(weight.loaded, gated, residual is not None, tile)
        scale = x if scale is None else scale
        fixed |= self._launch
        around = residual if residual is not None else x
        assert data.stride(1) == 1 and x.is_contiguous() and around.is_contiguous()
        sizes = (outputs, weight.in_features, data.shape[1], data.shape[0])
        if self._one_slot:
            kernels.vector_kernel[triton.cdiv(outputs, tile.rows),](
                x, data, scale, norm.alpha if norm else x, around, out, *sizes, RMS_NORM_EPS,
                NORM=norm is not None, DIM=triton.next_power_of_2(weight.in_features), **fixed,
            )  # fmt: skip
            return out
        x = self.norm(x, norm) if norm else x
        _many_rows(x, data, scale, around, out, sizes, fixed, self._most_rows)
        return out

    def norm(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """x [B, K] → the same, normed."""
        out = torch.empty_like(x)
        size = x.shape[1]
        kernels.norm_kernel[x.shape[0],](
            x, norm.alpha, out, size, RMS_NORM_EPS, DIM=triton.next_power_of_2(size), **self._launch
        )
        return out

    def _embed(self, tokens: Tensor) -> Tensor:
        """Column [B, 17] int64 → the sum of its embeddings [B, dim]."""
        model, dim = self.lm.temporal, self.lm.config.dim
        out = torch.empty(tokens.shape[0], dim, dtype=self.lm.activation_dtype, device=tokens.device)
        block = min(256, triton.next_power_of_2(dim))
        kernels.embed_kernel[tokens.shape[0], triton.cdiv(dim, block)](
            tokens.contiguous(), self._tables, out, dim, model.text_emb.weight,
            TABLE=_TYPES[model.emb[0].weight.dtype], STREAMS=STREAMS, BLOCK=block, **self._launch,
        )  # fmt: skip
        return out

    def _attend(
        self, qkv: Tensor, cache: KVCache, state: KeepingState, moves: Tensor, angles: tuple[Tensor, Tensor],
        held_angles: tuple[Tensor, Tensor],
    ) -> Tensor:  # fmt: skip
        """qkv [B, 3 · dim] → attended [B, dim]; appends to the cache of the slots that move."""
        slots, heads, capacity, row = cache.keys.shape
        rings = cache.keys, cache.values
        width, scales = row, rings
        if cache.keys.dtype is torch.int8:
            width, scales = row - CACHE_SCALE_BYTES, (rings[0].view(torch.float32), rings[1].view(torch.float32))
        out = qkv.new_empty(slots, heads * width)
        attention.attend_kernel[slots, heads, self._chunks](
            qkv, cache.keys, cache.values, *scales, state.position, state.kept, state.held, moves, *angles,
            *held_angles, out, self._partial, self._stats, self._arrived, heads, capacity, width**-0.5,
            D=width, ROW=row, BLOCK_T=32, CHUNK=CHUNK_FRAMES, CHUNKS=self._chunks, **self._launch,
        )  # fmt: skip
        return out

    def _depth_attend(self, qkv: Tensor, step: int) -> Tensor:
        """qkv [8, B, 3 · dim] of one layer, filled up to ``step`` → attended [B, dim]."""
        slots, heads = qkv.shape[1], self.lm.config.depformer_num_heads
        width = qkv.shape[2] // 3 // heads
        out = qkv.new_empty(slots, heads * width)
        attention.depth_attend_kernel[slots, heads](
            qkv, out, heads, width**-0.5, qkv.stride(1), qkv.stride(0), step, D=width, STEPS=STEPS, **self._launch
        )
        return out

    def _draw(
        self, logits: Tensor, noise: tuple, stream: int, kind: int, table: Tensor | None, embedding: Tensor
    ) -> None:
        """The token of one stream, and its row of ``table`` into ``embedding`` [B, depth dim]."""
        uniform, sampler, forced, tokens = noise
        size = logits.shape[1]
        block = triton.next_power_of_2(size)
        kernels.draw_kernel[logits.shape[0],](
            logits, uniform, sampler.temperature, sampler.top_k, sampler.greedy, forced, tokens, stream, kind,
            logits.stride(0), size, logits if table is None else table, embedding, embedding.shape[1],
            V=block, STREAMS=STREAMS, DRAWS=DRAWS, EMBED=table is not None,
            KEY_BITS=32 if self.lm.activation_dtype is torch.float32 else 16,
            DIM=triton.next_power_of_2(embedding.shape[1]), num_warps=min(max(block // 1024, 4), 32), **self._launch,
        )  # fmt: skip


def _shared_bytes(device: str) -> int:
    """Shared memory that one program may use; ``SHARED_BYTES`` on a CPU and where PyTorch does not say."""
    if not device.startswith("cuda"):
        return SHARED_BYTES
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", SHARED_BYTES)


def _many_rows(
    x: Tensor, data: Tensor, scale: Tensor, residual: Tensor, out: Tensor, sizes: tuple[int, ...],
    fixed: dict[str, Any], most: int,
) -> None:  # fmt: skip
    rows = x.shape[0]
    block = min(max(16, triton.next_power_of_2(rows)), most)
    # Triton's interpreter, on a CPU, cannot multiply bfloat16 numbers.
    dot = _TYPES[x.dtype] if x.device.type != "cpu" else tl.float32
    kernels.matrix_kernel[triton.cdiv(sizes[0], fixed["BLOCK_N"]), triton.cdiv(rows, block)](
        x, data, scale, residual, out, rows, *sizes, out.stride(0), BLOCK_B=block, DOT=dot, **fixed
    )


def _operands(weight: Weight, gated: bool, residual: bool, tile: Tile) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """A weight as the kernels take it: data, scales, and the constants they are compiled with."""
    data = weight.data.view(torch.int32) if weight.format is WeightFormat.INT4 else weight.data
    fixed = dict(
        FORMAT=_STORED.get(weight.format, kernels.PLAIN), GROUP=weight.group_size or 32, GATED=gated, RESIDUAL=residual,
        BLOCK_N=tile.rows, BLOCK_K=tile.columns, STAGES=tile.stages, num_warps=tile.warps,
    )  # fmt: skip
    return data, weight.scale, fixed
