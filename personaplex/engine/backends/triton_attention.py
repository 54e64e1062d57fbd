"""Triton kernels of attention: a frame's over the ring cache, and the depth transformer's over its steps."""

from __future__ import annotations

import triton
import triton.language as tl

from personaplex.engine.backends.triton_kernels import LOWEST, begin


@triton.jit
def _rotated(vector, cos, sin, HALF: tl.constexpr):
    """Rotary positions on interleaved pairs of a [2 · HALF] vector, rounded to its type: float32."""
    pair = tl.arange(0, HALF)
    even = tl.load(vector + 2 * pair).to(tl.float32)
    odd = tl.load(vector + 2 * pair + 1).to(tl.float32)
    c, s = tl.load(cos + pair), tl.load(sin + pair)
    both = tl.interleave(even * c - odd * s, even * s + odd * c)
    return both.to(vector.dtype.element_ty).to(tl.float32)


@triton.jit
def attend_kernel(
    qkv, keys, values, key_scales, value_scales, position, kept, held, active, cos, sin, held_cos, held_sin, y,
    partial, stats, arrived, H, C, scale, D: tl.constexpr, ROW: tl.constexpr, BLOCK_T: tl.constexpr,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One step's attention over the cache, after appending to it: over its kept entries and the ring behind them.

    A program has one slot, one head and CHUNK entries of the cache (flash-decoding, Dao et al. 2023); those beyond
    what the slot has filled end at once, and the last of the others to finish adds the parts up.

    qkv [B, 3 · H · D]; keys, values [B, H, C, ROW], rows of ``cache_rows``, and as int8 (ROW > D) the same memory as
    float32 in key_scales, value_scales; position [B] int64, steps appended before; kept [B] int64, entries
    that are never overwritten; held [B] int64, the first of them, which another query meets; active [B] bool, whether
    to append; cos, sin, and of that other query held_cos, held_sin [B, D / 2] float32; y [B, H · D];
    partial [B, H, CHUNKS, D] and stats [B, H, CHUNKS, 2] float32 scratch; arrived [B, H] int32, zero before and after.
    """
    begin(PDL)
    slot, head, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    last = tl.load(position + slot).to(tl.int32)
    filled = tl.minimum(last + 1, C)
    chunks = tl.cdiv(filled, CHUNK)
    if chunk < chunks:
        _attend_chunk(
            qkv, keys, values, key_scales, value_scales, active, cos, sin, held_cos, held_sin, y, partial, stats,
            arrived, H, C, scale, slot, head, chunk, chunks, last, filled, tl.load(kept + slot).to(tl.int32),
            tl.load(held + slot).to(tl.int32), D, ROW, BLOCK_T, CHUNK, CHUNKS,
        )  # fmt: skip


@triton.jit
def _write_or_add(
    out, partial, stats, arrived, row, chunk, chunks, most, total, summed, width, D: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """One chunk: write the answer. Several: leave this chunk's sums; whoever comes last adds all of them."""
    if chunks == 1:
        tl.store(out, (summed / total).to(out.dtype.element_ty))
    else:
        part = row * CHUNKS + chunk
        tl.store(partial + part * D + width, summed)
        tl.store(stats + part * 2, most)
        tl.store(stats + part * 2 + 1, total)
        tl.debug_barrier()
        before = tl.atomic_add(arrived + row, 1, sem="acq_rel", scope="gpu")
        if before == chunks - 1:
            _add_parts(out, partial, stats, row * CHUNKS, chunks, width, D, CHUNKS)
            tl.store(arrived + row, 0)


@triton.jit
def _appended(cache, scales, vector, row, moves, width, D: tl.constexpr, ROW: tl.constexpr):
    """Writes a [D] float32 vector into a row of the cache if the slot moves → the vector as the row has it."""
    if ROW > D:
        step = tl.max(tl.abs(vector), axis=0) / 127
        whole = tl.floor(vector / tl.where(step > 0, step, 1.0) + 0.5)
        if moves:
            tl.store(cache + row * ROW + width, whole.to(tl.int8))
            tl.store(scales + (row * ROW + D) // 4, step)
        return whole * step
    rounded = vector.to(cache.dtype.element_ty)
    if moves:
        tl.store(cache + row * ROW + width, rounded)
    return rounded.to(tl.float32)


@triton.jit
def _stored(data, scales, rows, seen, width, D: tl.constexpr, ROW: tl.constexpr):
    """Rows of the cache that are seen: [BLOCK_T, D] float32, zero elsewhere; int8 ones end with their scale."""
    read = tl.load(data + rows[:, None] * ROW + width[None, :], mask=seen[:, None], other=0).to(tl.float32)
    if ROW > D:
        read *= tl.load(scales + (rows * ROW + D) // 4, mask=seen, other=0.0)[:, None]
    return read


@triton.jit
def _attend_chunk(
    qkv, keys, values, key_scales, value_scales, active, cos, sin, held_cos, held_sin, y, partial, stats, arrived,
    H, C, scale, slot, head, chunk, chunks, last, filled, kept, held,
    D: tl.constexpr, ROW: tl.constexpr, BLOCK_T: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    width = tl.arange(0, D)
    dim = H * D
    query_at = qkv + slot * 3 * dim + head * D
    angle = slot * (D // 2)
    query = _rotated(query_at, cos + angle, sin + angle, D // 2) * scale
    held_query = _rotated(query_at, held_cos + angle, held_sin + angle, D // 2) * scale
    first = (slot.to(tl.int64) * H + head) * C
    entry = kept + (last - kept) % (C - kept)
    hidden = kept + (last + 1 - kept) % (C - kept)  # the entry that would be overwritten next is not seen
    start = chunk * CHUNK
    most, total = tl.full([], LOWEST, tl.float32), tl.full([], 0.0, tl.float32)
    summed = tl.zeros([D], tl.float32)
    for block in range(start, tl.minimum(start + CHUNK, filled), BLOCK_T):
        at = block + tl.arange(0, BLOCK_T)
        seen = (at < filled) & (at != hidden) & (at != entry)
        key = _stored(keys, key_scales, first + at, seen, width, D, ROW)
        value = _stored(values, value_scales, first + at, seen, width, D, ROW)
        score = tl.sum(key * query[None, :], axis=1)
        if block < held:
            score = tl.where(at < held, tl.sum(key * held_query[None, :], axis=1), score)
        score = tl.where(seen, score, LOWEST)
        higher = tl.maximum(most, tl.max(score, axis=0))
        weight = tl.where(seen, tl.exp(score - higher), 0.0)
        shrink = tl.exp(most - higher)
        total = total * shrink + tl.sum(weight, axis=0)
        summed = summed * shrink + tl.sum(weight[:, None] * value, axis=0)
        most = higher
    if (entry >= start) & (entry < start + CHUNK):
        moves = tl.load(active + slot) != 0
        key = _rotated(query_at + dim, cos + angle, sin + angle, D // 2)
        value = tl.load(query_at + 2 * dim + width).to(tl.float32)
        key = _appended(keys, key_scales, key, first + entry, moves, width, D, ROW)
        value = _appended(values, value_scales, value, first + entry, moves, width, D, ROW)
        score = tl.sum(key * query, axis=0)
        higher = tl.maximum(most, score)
        shrink, weight = tl.exp(most - higher), tl.exp(score - higher)
        total = total * shrink + weight
        summed = summed * shrink + weight * value
        most = higher
    out = y + slot * dim + head * D + width
    _write_or_add(out, partial, stats, arrived, slot * H + head, chunk, chunks, most, total, summed, width, D, CHUNKS)


@triton.jit
def _add_parts(out, partial, stats, first, chunks, width, D: tl.constexpr, CHUNKS: tl.constexpr):
    """Add up the chunks' sums in their order, whichever finished last."""
    most, total = tl.full([], LOWEST, tl.float32), tl.full([], 0.0, tl.float32)
    summed = tl.zeros([D], tl.float32)
    for chunk in range(chunks):
        part = first + chunk
        high = tl.load(stats + part * 2, cache_modifier=".cg")
        higher = tl.maximum(most, high)
        shrink, weight = tl.exp(most - higher), tl.exp(high - higher)
        total = total * shrink + weight * tl.load(stats + part * 2 + 1, cache_modifier=".cg")
        summed = summed * shrink + weight * tl.load(partial + part * D + width, cache_modifier=".cg")
        most = higher
    tl.store(out, (summed / total).to(out.dtype.element_ty))


@triton.jit
def depth_attend_kernel(
    qkv, y, H, scale, slot_stride, step_stride, step, D: tl.constexpr, STEPS: tl.constexpr, PDL: tl.constexpr
):
    """Attention of one depth step over the frame's steps so far: qkv [STEPS, B, 3 · H · D] → y [B, H · D]."""
    begin(PDL)
    slot, head = tl.program_id(0), tl.program_id(1)
    width, past, dim = tl.arange(0, D), tl.arange(0, STEPS), H * D
    base = qkv + slot * slot_stride + head * D
    query = tl.load(base + step * step_stride + width).to(tl.float32) * scale
    offsets = past[:, None] * step_stride + width[None, :]
    seen = past <= step
    key = tl.load(base + dim + offsets, mask=seen[:, None], other=0).to(tl.float32)
    value = tl.load(base + 2 * dim + offsets, mask=seen[:, None], other=0).to(tl.float32)
    score = tl.where(seen, tl.sum(key * query[None, :], axis=1), LOWEST)
    weight = tl.where(seen, tl.exp(score - tl.max(score, axis=0)), 0.0)
    summed = tl.sum(weight[:, None] * value, axis=0) / tl.sum(weight, axis=0)
    tl.store(y + slot * dim + head * D + width, summed.to(y.dtype.element_ty))
