"""The attention policy of a sequence (arXiv 2602.04884, Eq 2), in its defining, dense form.

Suffixes: T tokens, H query heads, K key heads (H divisible by K), D head dimension, R rows.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention_policy(query_THD: Tensor, key_TKD: Tensor, rows_R: Tensor, *, scale: float) -> Tensor:
    """Where each row looks: p [R, T].

    alpha_t = mean over heads of softmax(scale · q_t · k_i) over i ≤ t; then p_t(i) = alpha_t(i) / Σ_{j<t} alpha_t(j)
    for i < t and 0 elsewhere: the row's own position is left out and the rest renormalised.

    `query` [T, H, D] and `key` [T, K, D] are after rotary embedding; query head h reads key head h // (H / K). `rows`
    int64 [R] holds positions in 0..T-1. Computed in at least float32; differentiable in both; memory H · R · T.
    Degenerate case: row 0 has no earlier key and is all zeros. Raises ValueError that names the argument and its shape.
    """
    _check(query_THD, key_TKD, rows_R)
    tokens, heads, _ = query_THD.shape
    groups = heads // key_TKD.shape[1]
    precision = torch.promote_types(query_THD.dtype, torch.float32)
    query_RHD = query_THD[rows_R].to(precision)
    key_THD = key_TKD.to(precision).repeat_interleave(groups, dim=1)

    positions_T = torch.arange(tokens, device=rows_R.device)
    logits_HRT = torch.einsum("rhd,thd->hrt", query_RHD, key_THD) * scale
    causal_RT = positions_T[None, :] <= rows_R[:, None]
    alpha_RT = logits_HRT.masked_fill(~causal_RT, float("-inf")).softmax(-1).mean(0)

    earlier_RT = positions_T[None, :] < rows_R[:, None]
    mass_RT = torch.where(earlier_RT, alpha_RT, 0.0)
    total_R1 = mass_RT.sum(-1, keepdim=True)
    return mass_RT / torch.where(total_R1 > 0, total_R1, 1.0)


def _check(query: Tensor, key: Tensor, rows: Tensor) -> None:
    if query.ndim != 3 or key.ndim != 3 or query.shape[0] != key.shape[0] or query.shape[2] != key.shape[2]:
        raise ValueError(f"query must be [T, H, D] and key [T, K, D], got {tuple(query.shape)} and {tuple(key.shape)}")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"query heads must be a multiple of key heads, got {tuple(query.shape)}, {tuple(key.shape)}")
    if rows.ndim != 1 or rows.dtype != torch.int64:
        raise ValueError(f"rows must be int64 [R], got {rows.dtype} {tuple(rows.shape)}")
    if rows.numel() and not (int(rows.min()) >= 0 and int(rows.max()) < query.shape[0]):
        raise ValueError(f"rows must lie in 0..{query.shape[0] - 1}, got {int(rows.min())}..{int(rows.max())}")
