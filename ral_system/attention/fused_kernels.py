"""Triton kernels of attention policies: see `fused`, which launches them.

Suffixes: T tokens, H query heads, K key heads, D head dimension, R rows of a block, N spans of keys. A program has
BLOCK_R rows, numbered `at`, and goes through keys `key_at` BLOCK_S at a time; `row` holds the rows' positions.
Tensors are contiguous, a row of slopes `width` ≥ T long; `branches`, `key_mask` and the `positions` that a window of
`window` tokens is counted in may be None. Logarithms are to base 2.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Kernels run on CPU tensors too, slowly: TRITON_INTERPRET=1 was set when this module was imported."""
_LOG2_E = tl.constexpr(math.log2(math.e))
_LOWEST = tl.constexpr(-3e38)


@triton.jit
def _dot(a, b):
    if INTERPRETED:  # the interpreter multiplies bfloat16 by its bits
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _gradient_dot(by_logit, vectors):
    if vectors.dtype == tl.float16:  # would lose small slopes of logits
        vectors = vectors.to(tl.bfloat16)
    return _dot(by_logit.to(vectors.dtype), vectors)


@triton.jit
def _tile(source, at, valid, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Vectors [len(at), BLOCK_D] that start `stride` apart; 0 where not valid and beyond D."""
    d = tl.arange(0, BLOCK_D)
    return tl.load(source + at[:, None] * stride + d[None, :], mask=valid[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _keys(key_KTD, key_head, tokens, D: tl.constexpr):
    return key_KTD + tl.cast(key_head, tl.int64) * tokens * D


@triton.jit
def _rows(rows, at, row_count):
    """Positions of a tile's rows; -1, which sees nothing, beyond the last."""
    return tl.load(rows + at, mask=at < row_count, other=-1).to(tl.int32)


@triton.jit
def _visibility(row, key_at, branches, key_mask, positions, window, tokens):
    """Compute `policy.visibility` for positions that broadcast to a tile in either order."""
    seen = key_at <= row
    if branches is not None:
        row_branch = tl.load(branches + row, mask=row >= 0, other=0)
        key_branch = tl.load(branches + key_at, mask=key_at < tokens, other=-1)
        seen &= (key_branch == 0) | (key_branch == row_branch)
    if positions is not None:
        row_position = tl.load(positions + row, mask=row >= 0, other=0)
        key_position = tl.load(positions + key_at, mask=key_at < tokens, other=0)
        seen &= key_position > row_position - window
    counts = seen & (key_at < row)
    if key_mask is not None:
        counts &= tl.load(key_mask + key_at, mask=key_at < tokens, other=0) != 0
    return seen, counts


@triton.jit
def _probability(logits, log_sum):
    """2^(logit - log-sum-exp), at most 1 also where another tile's order of summation rounds large logits otherwise."""
    return tl.exp2(tl.minimum(logits - log_sum, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def log_sums(
    counted_NHR, left_out_NHR, query_RHD, key_KTD, rows_R, branches, key_mask, positions, window, scale, row_count,
    tokens, heads, group,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of a head's logits over the keys of a span that count, and over the other seen ones."""
    head, span = tl.program_id(1), tl.program_id(2)
    at = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row = _rows(rows_R, at, row_count)
    query = _tile(query_RHD + head * D, at, row >= 0, heads * D, D, BLOCK_D)
    keys = _keys(key_KTD, head // group, tokens, D)
    top, left_top = tl.full([BLOCK_R], _LOWEST, tl.float32), tl.full([BLOCK_R], _LOWEST, tl.float32)
    total, left_total = tl.zeros([BLOCK_R], tl.float32), tl.zeros([BLOCK_R], tl.float32)
    for start in range(span * SPAN, tl.minimum((span + 1) * SPAN, tl.max(row) + 1), BLOCK_S):
        key_at = start + tl.arange(0, BLOCK_S)
        key = _tile(keys, key_at, key_at < tokens, D, D, BLOCK_D)
        logits = _dot(query, tl.trans(key)) * (scale * _LOG2_E)
        seen, counts = _visibility(row[:, None], key_at[None, :], branches, key_mask, positions, window, tokens)
        left = seen & ~counts
        new_top = tl.maximum(top, tl.max(tl.where(counts, logits, _LOWEST), 1))
        new_left_top = tl.maximum(left_top, tl.max(tl.where(left, logits, _LOWEST), 1))
        weights = tl.exp2(logits - tl.where(counts, new_top[:, None], new_left_top[:, None]))
        total = total * tl.exp2(top - new_top) + tl.sum(tl.where(counts, weights, 0.0), 1)
        left_total = left_total * tl.exp2(left_top - new_left_top) + tl.sum(tl.where(left, weights, 0.0), 1)
        top, left_top = new_top, new_left_top
    to = (span * heads + head) * row_count + at
    tl.store(counted_NHR + to, top + tl.log2(total), mask=at < row_count)
    tl.store(left_out_NHR + to, left_top + tl.log2(left_total), mask=at < row_count)


@triton.jit
def mixture(
    policy, counted_HR, weight_HR, mixed, query_RHD, key_KTD, rows_R, branches, key_mask, positions, window, scale,
    row_count, tokens, heads, group,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """A tile of one policy: Σ_h w_h a_h over `mixed` heads."""
    index, start = tl.program_id(2), tl.program_id(1) * BLOCK_S
    at = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    key_at = start + tl.arange(0, BLOCK_S)
    row = _rows(rows_R, at, row_count)
    found = tl.zeros([BLOCK_R, BLOCK_S], tl.float32)
    if start <= tl.max(row):
        first, last = index * mixed, (index + 1) * mixed
        for key_head in range(first // group, (last - 1) // group + 1):
            keys = _keys(key_KTD, key_head, tokens, D)
            key = _tile(keys, key_at, key_at < tokens, D, D, BLOCK_D)
            for head in range(tl.maximum(first, key_head * group), tl.minimum(last, (key_head + 1) * group)):
                query = _tile(query_RHD + head * D, at, row >= 0, heads * D, D, BLOCK_D)
                logits = _dot(query, tl.trans(key)) * (scale * _LOG2_E)
                counted = tl.load(counted_HR + head * row_count + at, mask=at < row_count, other=0.0)
                weight = tl.load(weight_HR + head * row_count + at, mask=at < row_count, other=0.0)
                found += weight[:, None] * _probability(logits, counted[:, None])
        _, counts = _visibility(row[:, None], key_at[None, :], branches, key_mask, positions, window, tokens)
        found = tl.where(counts, found, 0.0)
    to = policy + index.to(tl.int64) * row_count * tokens + at[:, None] * tokens + key_at[None, :]
    tl.store(to, found, mask=(at < row_count)[:, None] & (key_at < tokens)[None, :])


@triton.jit
def slope_means(
    means_NHR, slopes, slopes_stride, width, counted_HR, query_RHD, key_KTD, rows_R, branches, key_mask, positions,
    window, scale, row_count, tokens, heads, group,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """A span's share of c_h."""
    head, span = tl.program_id(1), tl.program_id(2)
    at = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row = _rows(rows_R, at, row_count)
    query = _tile(query_RHD + head * D, at, row >= 0, heads * D, D, BLOCK_D)
    keys = _keys(key_KTD, head // group, tokens, D)
    slopes_RT = slopes + head.to(tl.int64) * slopes_stride + at[:, None] * width
    counted = tl.load(counted_HR + head * row_count + at, mask=at < row_count, other=0.0)
    mean = tl.zeros([BLOCK_R], tl.float32)
    for start in range(span * SPAN, tl.minimum((span + 1) * SPAN, tl.max(row) + 1), BLOCK_S):
        key_at = start + tl.arange(0, BLOCK_S)
        key = _tile(keys, key_at, key_at < tokens, D, D, BLOCK_D)
        slope = tl.load(slopes_RT + key_at[None, :], mask=(row >= 0)[:, None] & (key_at < width)[None, :], other=0.0)
        logits = _dot(query, tl.trans(key)) * (scale * _LOG2_E)
        _, counts = _visibility(row[:, None], key_at[None, :], branches, key_mask, positions, window, tokens)
        mean += tl.sum(tl.where(counts, _probability(logits, counted[:, None]) * slope, 0.0), 1)
    tl.store(means_NHR + (span * heads + head) * row_count + at, mean, mask=at < row_count)


@triton.jit
def _coefficients(coefficients_5HR, head, at, heads, row_count):
    """E_h, L_h, w_h, offset and w_h (c_h - c) of a tile's rows (see `FusedKernels.gradient`)."""
    first, stride, valid = coefficients_5HR + head * row_count + at, heads * row_count, at < row_count
    counted, seen = tl.load(first, mask=valid, other=0.0), tl.load(first + stride, mask=valid, other=0.0)
    weight = tl.load(first + 2 * stride, mask=valid, other=0.0)
    offset = tl.load(first + 3 * stride, mask=valid, other=0.0)
    return counted, seen, weight, offset, tl.load(first + 4 * stride, mask=valid, other=0.0)


@triton.jit
def _logit_gradient(logits, slope, seen, counts, log_counted, log_seen, weight, offset, away):
    """∂D/∂logit of a tile; the rows' coefficients broadcast to it."""
    share = _probability(logits, tl.where(counts, log_counted, log_seen))
    return tl.where(seen, share * tl.where(counts, weight * slope - offset, -away), 0.0)


@triton.jit
def query_gradient(
    gradient_NHRD, slopes, slopes_stride, width, coefficients_5HR, query_RHD, key_KTD, rows_R, branches, key_mask,
    positions, window, scale, row_count, tokens, heads, group,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """A span's share of ∂D/∂query of a tile of rows of one head."""
    head, span = tl.program_id(1), tl.program_id(2)
    at = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row = _rows(rows_R, at, row_count)
    query = _tile(query_RHD + head * D, at, row >= 0, heads * D, D, BLOCK_D)
    keys = _keys(key_KTD, head // group, tokens, D)
    slopes_RT = slopes + head.to(tl.int64) * slopes_stride + at[:, None] * width
    counted, seen_sum, weight, offset, away = _coefficients(coefficients_5HR, head, at, heads, row_count)
    found = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for start in range(span * SPAN, tl.minimum((span + 1) * SPAN, tl.max(row) + 1), BLOCK_S):
        key_at = start + tl.arange(0, BLOCK_S)
        key = _tile(keys, key_at, key_at < tokens, D, D, BLOCK_D)
        slope = tl.load(slopes_RT + key_at[None, :], mask=(row >= 0)[:, None] & (key_at < width)[None, :], other=0.0)
        logits = _dot(query, tl.trans(key)) * (scale * _LOG2_E)
        seen, counts = _visibility(row[:, None], key_at[None, :], branches, key_mask, positions, window, tokens)
        by_logit = _logit_gradient(
            logits, slope, seen, counts, counted[:, None], seen_sum[:, None], weight[:, None], offset[:, None],
            away[:, None],
        )  # fmt: skip
        found += _gradient_dot(by_logit, key)
    d = tl.arange(0, BLOCK_D)
    to = gradient_NHRD + (span * heads + head).to(tl.int64) * row_count * D + at[:, None] * D + d[None, :]
    tl.store(to, found * scale, mask=(at < row_count)[:, None] & (d < D)[None, :])


@triton.jit
def key_gradient(
    gradient_KTD, last_row, slopes, slopes_stride, width, coefficients_5HR, query_RHD, key_KTD, rows_R, branches,
    key_mask, positions, window, scale, row_count, tokens, heads, group,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Adds the rows' share to ∂D/∂key of a tile of keys of one key head."""
    start, key_head = tl.program_id(0) * BLOCK_S, tl.program_id(1)
    if start > tl.load(last_row):
        return
    key_at = start + tl.arange(0, BLOCK_S)
    key = _tile(_keys(key_KTD, key_head, tokens, D), key_at, key_at < tokens, D, D, BLOCK_D)
    found = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    row_tiles = tl.cdiv(row_count, BLOCK_R)
    for i in range(group * row_tiles):
        head = key_head * group + i // row_tiles
        at = (i % row_tiles) * BLOCK_R + tl.arange(0, BLOCK_R)
        row = _rows(rows_R, at, row_count)
        query = _tile(query_RHD + head * D, at, row >= 0, heads * D, D, BLOCK_D)
        slopes_TR = slopes + head.to(tl.int64) * slopes_stride + at[None, :] * width
        slope = tl.load(slopes_TR + key_at[:, None], mask=(key_at < width)[:, None] & (row >= 0)[None, :], other=0.0)
        counted, seen_sum, weight, offset, away = _coefficients(coefficients_5HR, head, at, heads, row_count)
        logits = _dot(key, tl.trans(query)) * (scale * _LOG2_E)
        seen, counts = _visibility(row[None, :], key_at[:, None], branches, key_mask, positions, window, tokens)
        by_logit = _logit_gradient(
            logits, slope, seen, counts, counted[None, :], seen_sum[None, :], weight[None, :], offset[None, :],
            away[None, :],
        )  # fmt: skip
        found += _gradient_dot(by_logit, query)
    d = tl.arange(0, BLOCK_D)
    to = _keys(gradient_KTD, key_head, tokens, D) + key_at[:, None] * D + d[None, :]
    valid = (key_at < tokens)[:, None] & (d < D)[None, :]
    tl.store(to, tl.load(to, mask=valid, other=0.0) + found * scale, mask=valid)
