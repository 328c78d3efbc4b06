"""Attention policies in Triton: no tensor with an entry per head, row and key is written, forward or backward.

The maths and its symbols are those of `chunked`, with logarithms to base 2. A logit's slope needs c_h of its whole row,
so the backward pass visits the keys once for c_h, once for the queries and once for the keys, and computes the logits
again each time. One program owns what it writes: no atomics, the same call gives the same bits.

Suffixes: as in `chunked`, and N spans of keys: they share the work on a block's few rows among many programs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ral_system.attention import fused_kernels as kernels
from ral_system.attention.sequence import SequenceGroup, softmax_over_heads, total
from ral_system.attention.window import Window
from ral_system.config.choices import Heads

_BLOCK_BYTES = 8 << 20
"""Size of one block's policies."""
_ROW_TILE = 64
"""Rows of a program, and the fewest of a block: tiles that are mostly empty cost as much as full ones."""
SPAN = 2048
"""Keys of a span."""
KERNELS = ("log_sums", "mixture", "slope_means", "query_gradient", "key_gradient")
"""Kernels in the order of their launch."""


@dataclass
class _Block:
    """Values that the backward pass of one block needs."""

    rows: Tensor
    """[R]"""
    query: Tensor
    """[R, H, D]"""
    counted: Tensor
    """[H, R] E_h; L_h where a row has no key that counts."""
    seen: Tensor
    """[H, R] L_h."""
    weight: Tensor
    """[H, R] w_h; 0 where a row has no key that counts. With heads="each": 1."""


class FusedKernels:
    """`chunked.ChunkedKernels` on a CUDA device, for keys of at most 32 bits; deterministic; computes in float32."""

    def __init__(
        self,
        key_TKD: Tensor,
        *,
        scale: float,
        branches: Tensor | None,
        key_mask: Tensor | None,
        heads: Heads,
        sequence: SequenceGroup | None = None,
        window: Window | None = None,
    ) -> None:
        dtype, dim = key_TKD.dtype, key_TKD.shape[-1]
        if not key_TKD.is_cuda and not kernels.INTERPRETED.value:
            raise ValueError(f"backend='triton' needs CUDA tensors, got {key_TKD.device}; use backend='chunked'")
        if dtype == torch.float64 or dim > 256:
            raise ValueError(
                f"backend='triton' has no float64 and no heads wider than 256, got {dtype} [T, K, {dim}]; "
                "use backend='chunked' or 'dense'"
            )
        self._key_KTD = key_TKD.transpose(0, 1).contiguous()
        self._scale = scale
        self._branches = None if branches is None else branches.contiguous()
        self._key_mask = None if key_mask is None else key_mask.contiguous().view(torch.uint8)
        self._heads = heads
        self._sequence = sequence
        self._positions = None if window is None else window.positions.int().contiguous()
        self._window = 0 if window is None else window.size
        self._spans = _cdiv(key_TKD.shape[0], SPAN)
        self._tiles = launch_options(dim, dtype)

    def rows_per_block(self, query_heads: int) -> int:
        """Return the number of rows that fit the block size, in whole tiles, at least one."""
        row_bytes = 4 * self._key_KTD.shape[1] * (query_heads if self._heads == "each" else 1)
        return max(1, _BLOCK_BYTES // row_bytes // _ROW_TILE) * _ROW_TILE

    def policy(self, query_RHD: Tensor, rows_R: Tensor) -> tuple[Tensor, _Block]:
        """p [R, T] or [H, R, T] of a block of rows."""
        query_RHD, rows_R = query_RHD.contiguous(), rows_R.contiguous()
        rows, heads, _ = query_RHD.shape
        row_tiles, tokens = self._row_tiles(rows), self._key_KTD.shape[1]
        sums_2NHR = query_RHD.new_empty((2, self._spans, heads, rows), dtype=torch.float32)
        self._launch(kernels.log_sums, (row_tiles, heads, self._spans), query_RHD, rows_R, *sums_2NHR, SPAN=SPAN)
        counted_HR, left_out_HR = _log_sum(sums_2NHR[0]), _log_sum(sums_2NHR[1])
        seen_HR = torch.logaddexp2(counted_HR, left_out_HR)
        some_R = counted_HR[0] > -math.inf
        log_mass_HR = (counted_HR - seen_HR) * math.log(2)
        weight_HR = (
            torch.ones_like(seen_HR) if self._heads == "each" else softmax_over_heads(log_mass_HR, self._sequence)
        )
        block = _Block(
            rows_R,
            query_RHD,
            counted=torch.where(some_R, counted_HR, seen_HR),
            seen=seen_HR,
            weight=torch.where(some_R, weight_HR, 0.0),
        )
        policies, mixed = (heads, 1) if self._heads == "each" else (1, heads)
        p = query_RHD.new_empty((policies, rows, tokens), dtype=torch.float32)
        grid = row_tiles, _cdiv(tokens, self._tiles["BLOCK_S"]), policies
        self._launch(kernels.mixture, grid, query_RHD, rows_R, p, block.counted, block.weight, mixed)
        return p if self._heads == "each" else total(p[0], self._sequence), block

    def gradient(self, block: _Block, slopes: Tensor, key_gradient_KTD: Tensor) -> Tensor:
        """Gradient of the block's query rows [R, H, D], from ∂D/∂p; adds the keys' share to `key_gradient`."""
        inputs, weight_HR = (block.query, block.rows), block.weight
        rows, heads, dim = block.query.shape
        key_heads, tokens, _ = self._key_KTD.shape
        slopes = pad(slopes, (0, -tokens % 16))  # aligned rows: four slopes a load
        width = slopes.shape[-1]
        given = slopes, rows * width if self._heads == "each" else 0, width
        grid = self._row_tiles(rows), heads, self._spans
        means_NHR = slopes.new_empty((self._spans, heads, rows))
        self._launch(kernels.slope_means, grid, *inputs, means_NHR, *given, block.counted, SPAN=SPAN)
        mean_HR = means_NHR.sum(0)
        if self._heads == "each":
            offset_HR, away_HR = mean_HR, torch.zeros_like(mean_HR)
        else:
            mean_R = total((weight_HR * mean_HR).sum(0), self._sequence)
            away_HR = weight_HR * (mean_HR - mean_R)
            offset_HR = weight_HR * mean_R + away_HR * (block.counted - block.seen).exp2()
        coefficients_5HR = torch.stack([block.counted, block.seen, weight_HR, offset_HR, away_HR])

        gradient_NHRD = slopes.new_empty((self._spans, heads, rows, dim))
        self._launch(kernels.query_gradient, grid, *inputs, gradient_NHRD, *given, coefficients_5HR, SPAN=SPAN)
        grid = _cdiv(tokens, self._tiles["BLOCK_S"]), key_heads, 1
        self._launch(kernels.key_gradient, grid, *inputs, key_gradient_KTD, block.rows.max(), *given, coefficients_5HR)
        return gradient_NHRD.sum(0).transpose(0, 1)

    def _row_tiles(self, rows: int) -> int:
        return _cdiv(rows, self._tiles["BLOCK_R"])

    def _launch(
        self, kernel: Any, grid: tuple[int, int, int], query_RHD: Tensor, rows_R: Tensor, *own: Any, **constants: Any
    ) -> None:
        """`own`: the kernel's arguments before those that all kernels share."""
        key_KTD, heads = self._key_KTD, query_RHD.shape[1]
        with torch.cuda.device_of(key_KTD):
            kernel[grid](
                *own,
                query_RHD,
                key_KTD,
                rows_R,
                self._branches,
                self._key_mask,
                self._positions,
                self._window,
                self._scale,
                len(rows_R),
                key_KTD.shape[1],
                heads,
                heads // key_KTD.shape[0],
                D=key_KTD.shape[2],
                **self._tiles,
                **constants,
            )


def launch_options(dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile sizes, warps and pipeline stages, chosen so that registers and shared memory hold a program.

    `python -m bench.kernels` shows what they take; they are not tuned for speed.
    """
    options = {"BLOCK_D": max(16, 1 << (dim - 1).bit_length()), "enable_fp_fusion": True}
    if dtype == torch.float32:
        return options | {"BLOCK_R": 32, "BLOCK_S": 16, "num_warps": 8, "num_stages": 1}
    warps, stages = (4, 3) if dim <= 128 else (8, 2)
    return options | {"BLOCK_R": _ROW_TILE, "BLOCK_S": 32, "num_warps": warps, "num_stages": stages}


def _log_sum(x_NHR: Tensor) -> Tensor:
    """[H, R] log2 Σ_n 2^x_n; -inf where all are."""
    top_HR = x_NHR.amax(0).clamp(min=-3e38)
    return top_HR + (x_NHR - top_HR).exp2().sum(0).log2()


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)
