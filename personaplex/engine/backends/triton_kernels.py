"""Triton kernels for a frame of few slots, where weights are read once and nothing else may cost time.

Rounding follows the plain path: both round to the activations' type at the same places, so they
differ in the order of sums only. Needs Triton (on Linux it comes with PyTorch's CUDA build);
with ``TRITON_INTERPRET=1`` set before the import the kernels run on a CPU, slowly, for the tests.

``PDL``: programmatic dependent launch. A kernel then starts while the one before it ends, and waits
(``begin``) before it touches what that one wrote.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

PLAIN, INT8, INT4 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Storage of a weight: plain [N, K]; int8 [N, K], a scale a row; int4, 8 columns a word, scale and offset a group."""

UNKNOWN = tl.constexpr(-2)
NO_TOKEN = tl.constexpr(-1)
LOWEST = tl.constexpr(-1.0e30)
NIBBLES = tl.constexpr(8)


@triton.jit
def begin(PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


# ---------------------------------------------------------------------------------- weights


@triton.jit
def _weight_tile(
    data, scale, rows, row_mask, start, width, num_rows, K,
    FORMAT: tl.constexpr, GROUP: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Columns start … start + BLOCK_K of some rows: [R, BLOCK_K]; int8 without its scale, int4 in float32.

    width: elements from one row to the next (words for int4); num_rows: padded rows, of int4's scales.
    """
    if FORMAT == INT4:
        words = start // NIBBLES + tl.arange(0, BLOCK_K // NIBBLES)
        inside = row_mask[:, None] & (words[None, :] < width)
        packed = tl.load(data + rows[:, None] * width + words[None, :], mask=inside, other=0)
        pair = (words[None, :] * NIBBLES // GROUP * num_rows + rows[:, None]) * 2
        per_word = tl.load(scale + pair, mask=inside, other=0).to(tl.float32)
        zero = tl.load(scale + pair + 1, mask=inside, other=0).to(tl.float32)
        shifts = tl.arange(0, NIBBLES) * 4
        q = (packed[:, :, None] >> shifts[None, None, :]) & 15
        values = (q - 8).to(tl.float32) * per_word[:, :, None] + zero[:, :, None]
        tile = tl.reshape(values, [rows.shape[0], BLOCK_K])
    else:
        columns = start + tl.arange(0, BLOCK_K)
        inside = row_mask[:, None] & (columns[None, :] < K)
        tile = tl.load(data + rows[:, None] * width + columns[None, :], mask=inside, other=0)
    return tile


@triton.jit
def _tile_rows(BLOCK_N: tl.constexpr, N, GATED: tl.constexpr):
    """Rows of the weight this program reads, and which exist; gated: BLOCK_N of the gate, then as many of the value."""
    if GATED:
        at = tl.arange(0, 2 * BLOCK_N)
        outputs = tl.program_id(0) * BLOCK_N + at % BLOCK_N
        rows = outputs + at // BLOCK_N * N
    else:
        outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        rows = outputs
    return rows, outputs < N


@triton.jit
def _gate(gate, value, like):
    """silu(gate) · value of two numbers that are rounded to the type ``like``, as the plain path has it on a GPU."""
    gate, value = gate.to(like).to(tl.float32), value.to(like).to(tl.float32)
    return gate / (1.0 + tl.exp(-gate)) * value


@triton.jit
def vector_kernel(
    x, data, scale, alpha, residual, y, N, K, width, num_rows, eps,
    FORMAT: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DIM: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One slot: y [N] = W · x [K], maybe of the RMS-normed x, maybe gated (W has 2N rows), maybe plus a residual [N].

    DIM: a power of two that holds K, for the norm.
    """
    begin(PDL)
    rows, row_mask = _tile_rows(BLOCK_N, N, GATED)
    root = 1.0
    if NORM:
        whole = tl.arange(0, DIM)
        values = tl.load(x + whole, mask=whole < K, other=0).to(tl.float32)
        root = tl.rsqrt(eps + tl.sum(values * values) / K)
    total = tl.zeros([rows.shape[0], BLOCK_K], tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        columns = start + tl.arange(0, BLOCK_K)
        piece = tl.load(x + columns, mask=columns < K, other=0).to(tl.float32)
        if NORM:
            weight = tl.load(alpha + columns, mask=columns < K, other=0).to(tl.float32)
            piece = (piece * (weight * root)).to(x.dtype.element_ty).to(tl.float32)
        tile = _weight_tile(data, scale, rows, row_mask, start, width, num_rows, K, FORMAT, GROUP, BLOCK_K)
        total += tile.to(tl.float32) * piece[None, :]
    summed = tl.sum(total, axis=1)
    if FORMAT == INT8:
        summed = summed * tl.load(scale + rows, mask=row_mask, other=0).to(tl.float32)
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if GATED:
        gate, value = tl.split(tl.trans(tl.reshape(summed, [2, BLOCK_N])))
        summed = _gate(gate, value, x.dtype.element_ty)
    if RESIDUAL:
        before = tl.load(residual + outputs, mask=outputs < N, other=0).to(tl.float32)
        summed = summed.to(x.dtype.element_ty).to(tl.float32) + before
    tl.store(y + outputs, summed.to(x.dtype.element_ty).to(y.dtype.element_ty), mask=outputs < N)


@triton.jit
def matrix_kernel(
    x, data, scale, residual, y, B, N, K, width, num_rows, y_stride,
    FORMAT: tl.constexpr, GROUP: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, DOT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Several slots: y [B, N] = x [B, K] · Wᵀ on the tensor cores, maybe gated, maybe plus a residual [B, N].

    y_stride: elements from one slot of y to the next; DOT: the type that products take, once rounded to x's.
    """
    begin(PDL)
    rows, row_mask = _tile_rows(BLOCK_N, N, GATED)
    slots = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    total = tl.zeros([BLOCK_B, rows.shape[0]], tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        columns = start + tl.arange(0, BLOCK_K)
        inside = (slots[:, None] < B) & (columns[None, :] < K)
        piece = tl.load(x + slots[:, None] * K + columns[None, :], mask=inside, other=0)
        tile = _weight_tile(data, scale, rows, row_mask, start, width, num_rows, K, FORMAT, GROUP, BLOCK_K)
        if FORMAT == INT8:
            tile = tile.to(tl.float32)
        total = tl.dot(piece.to(DOT), tl.trans(tile.to(piece.dtype).to(DOT)), total, input_precision="ieee")
    if FORMAT == INT8:
        total = total * tl.load(scale + rows, mask=row_mask, other=0).to(tl.float32)[None, :]
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if GATED:
        gate, value = tl.split(tl.permute(tl.reshape(total, [BLOCK_B, 2, BLOCK_N]), (0, 2, 1)))
        total = _gate(gate, value, x.dtype.element_ty)
    inside = (slots[:, None] < B) & (outputs[None, :] < N)
    if RESIDUAL:
        before = tl.load(residual + slots[:, None] * N + outputs[None, :], mask=inside, other=0).to(tl.float32)
        total = total.to(x.dtype.element_ty).to(tl.float32) + before
    rounded = total.to(x.dtype.element_ty).to(y.dtype.element_ty)
    tl.store(y + slots[:, None] * y_stride + outputs[None, :], rounded, mask=inside)


@triton.jit
def norm_kernel(x, alpha, y, K, eps, DIM: tl.constexpr, PDL: tl.constexpr):
    """RMS norm of one slot: x, y [B, K]."""
    begin(PDL)
    columns = tl.arange(0, DIM)
    at = tl.program_id(0) * K + columns
    values = tl.load(x + at, mask=columns < K, other=0).to(tl.float32)
    root = tl.rsqrt(eps + tl.sum(values * values) / K)
    weight = tl.load(alpha + columns, mask=columns < K, other=0).to(tl.float32)
    tl.store(y + at, (values * (weight * root)).to(y.dtype.element_ty), mask=columns < K)


@triton.jit
def embed_kernel(
    tokens, tables, y, K, text_table, TABLE: tl.constexpr, STREAMS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """Sum of a column's embeddings: tokens [B, STREAMS] int64 → y [B, K]; tables [STREAMS − 1] int64 addresses.

    Stream 0 (text) comes last, and every partial sum is rounded, as in the plain path.
    """
    begin(PDL)
    slot = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    like = y.dtype.element_ty
    total = tl.zeros([BLOCK], tl.float32)
    for stream in tl.static_range(1, STREAMS):
        token = tl.load(tokens + slot * STREAMS + stream)
        table = tl.load(tables + stream - 1).to(tl.pointer_type(TABLE))
        known = (columns < K) & (token != NO_TOKEN)
        row = tl.load(table + token * K + columns, mask=known, other=0).to(like).to(tl.float32)
        total = (total + row).to(like).to(tl.float32)
    token = tl.load(tokens + slot * STREAMS)
    known = (columns < K) & (token != NO_TOKEN)
    row = tl.load(text_table + token * K + columns, mask=known, other=0).to(like).to(tl.float32)
    tl.store(y + slot * K + columns, (total + row).to(like), mask=columns < K)


# ---------------------------------------------------------------------------------- tokens


@triton.jit
def _drawn(logit, inside, uniform, temperature, top_k, V: tl.constexpr, KEY_BITS: tl.constexpr):
    """The token at which the top-k's cumulative distribution, likeliest first, passes ``uniform``.

    Thresholds are found bit by bit on the logits' order-preserving integers, without sorting; the upper KEY_BITS
    tell logits apart (16 where they are bfloat16 numbers). Equal logits follow each other by their index.
    """
    bits = logit.to(tl.uint32, bitcast=True)
    sign = bits >> 31
    key = tl.where(sign == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    key = (key >> (32 - KEY_BITS)) << (32 - KEY_BITS)  # of negative numbers the lower bits are ones now
    key = tl.where(inside, key, 0)
    weight = tl.where(inside, tl.exp((logit - tl.max(logit, axis=0)) / temperature), 0.0)
    lowest = tl.full([], 0, tl.uint32)  # the k-th largest key
    for step in range(KEY_BITS):
        higher = lowest | (tl.full([], 0x80000000, tl.uint32) >> step)
        many = tl.sum((key >= higher).to(tl.int32), axis=0) >= top_k
        lowest = tl.where(many, higher, lowest)
    above = key > lowest
    room = top_k - tl.sum(above.to(tl.int32), axis=0)  # of those equal to the k-th
    edge = tl.max(tl.where(key == lowest, weight, 0.0), axis=0)
    target = uniform * (tl.sum(tl.where(above, weight, 0.0), axis=0) + room * edge)
    found = tl.full([], 0, tl.uint32)
    for step in range(KEY_BITS):
        higher = found | (tl.full([], 0x80000000, tl.uint32) >> step)
        beyond = tl.sum(tl.where(key >= higher, weight, 0.0), axis=0) > target
        found = tl.where(beyond, higher, found)
    found = tl.maximum(found, lowest)
    equal = (key == found) & inside
    allowed = tl.where(found == lowest, room, tl.sum(equal.to(tl.int32), axis=0))
    one = tl.max(tl.where(equal, weight, 0.0), axis=0)
    left = target - tl.sum(tl.where(key > found, weight, 0.0), axis=0)
    chosen = tl.minimum(tl.maximum((left / one).to(tl.int32), 0), allowed - 1)
    rank = tl.cumsum(equal.to(tl.int32), axis=0) - 1
    index = tl.arange(0, V)
    return tl.sum(tl.where(equal & (rank == chosen), index, 0), axis=0)


@triton.jit
def draw_kernel(
    logits, uniform, temperature, top_k, greedy, forced, tokens, stream, kind, logits_stride, size, table, y, K,
    V: tl.constexpr, STREAMS: tl.constexpr, DRAWS: tl.constexpr, KEY_BITS: tl.constexpr, DIM: tl.constexpr,
    EMBED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One slot's token of one stream: forced, the likeliest or drawn; then its embedding, the next step's input.

    logits [B, size] float32; uniform [B, DRAWS]; temperature, top_k [B, 2]; greedy [B] bool; forced [B, STREAMS]
    int64; tokens [B, DRAWS] int64 gets column ``stream``; table [·, K] → y [B, K] where EMBED.
    """
    begin(PDL)
    slot = tl.program_id(0)
    index = tl.arange(0, V)
    inside = index < size
    logit = tl.load(logits + slot * logits_stride + index, mask=inside, other=float("-inf"))
    token = tl.argmax(logit, axis=0).to(tl.int64)
    if tl.load(greedy + slot) == 0:
        most = tl.minimum(tl.load(top_k + slot * 2 + kind), size).to(tl.int32)
        noise = tl.load(uniform + slot * DRAWS + stream)
        warmth = tl.load(temperature + slot * 2 + kind)
        token = _drawn(logit, inside, noise, warmth, most, V, KEY_BITS).to(tl.int64)
    known = tl.load(forced + slot * STREAMS + stream)
    token = tl.where(known == UNKNOWN, token, known)
    tl.store(tokens + slot * DRAWS + stream, token)
    if EMBED:
        columns = tl.arange(0, DIM)
        row = tl.load(table + token * K + columns, mask=(columns < K) & (token != NO_TOKEN), other=0)
        tl.store(y + slot * K + columns, row.to(y.dtype.element_ty), mask=columns < K)
