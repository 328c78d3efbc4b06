"""The attention policy of a sequence (arXiv 2602.04884, Eq 2), in its defining, dense form.

Suffixes: T tokens, H query heads, K key heads (H divisible by K), D head dimension, R rows.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from ral_system.attention.sequence import SequenceGroup, softmax_over_heads, total
from ral_system.attention.window import Window
from ral_system.config.choices import Heads
from ral_system.device_kind import device_kind


def attention_policy(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    *,
    scale: float,
    branches: Tensor | None = None,
    key_mask: Tensor | None = None,
    heads: Heads = "mean",
    window: Window | None = None,
) -> Tensor:
    """Compute the attention policy of each row: p [R, T], or [H, R, T] with heads="each".

    With alpha_h = softmax over the keys i ≤ t that row t sees of scale · q_h,t · k_i, and C_t the keys that count,
    which it sees before itself (i < t) and which are in `key_mask`:

        p_t(i) = alpha_t(i) / Σ_{j in C_t} alpha_t(j) for i in C_t, else 0;    alpha the mean over heads, or each head's

    `query` [T, H, D] and `key` [T, K, D] are after rotary embedding; query head h reads key head h // (H / K). `rows`
    int64 [R] holds positions in 0..T-1, in any order, repeated if need be. `branches` int64 [T] is for sequences packed
    into one: a row sees keys of branch 0, which all share, and of its own branch; None: all keys. `key_mask` bool [T].
    `window` says how far back rows see, in the softmax and so in C_t; None: to the first token.
    Computed in at least float32; differentiable in both; memory H · R · T. Logits must be finite. Autocast does not
    reach inside. Degenerate case: a row without a key that counts is all zeros. Raises ValueError that names the
    argument.

    Computed as a mixture Σ_h w_h a_h: a_h is head h's softmax over C_t alone and w_h the share of alpha's mass on C_t
    that is head h's. Nothing is divided by a vanishing mass, however peaked a row is on itself or on masked keys.
    """
    check_arguments(query, key, rows, scale, branches, key_mask, heads, window)
    with torch.autocast(device_kind(query.device), enabled=False):
        return dense_policy(query[rows], key, rows, scale, branches, key_mask, heads, window=window)


def dense_policy(
    query_RHD: Tensor,
    key: Tensor,
    rows: Tensor,
    scale: float,
    branches: Tensor | None,
    key_mask: Tensor | None,
    heads: Heads,
    sequence: SequenceGroup | None = None,
    window: Window | None = None,
) -> Tensor:
    """`attention_policy` of the rows' own queries, without its checks and outside of its reach of autocast.

    The heads are this rank's of `sequence`; the mean is over those of all ranks.
    """
    precision = torch.promote_types(query_RHD.dtype, torch.float32)
    key_THD = key.to(precision).repeat_interleave(query_RHD.shape[1] // key.shape[1], dim=1)
    logits_HRT = torch.einsum("rhd,thd->hrt", query_RHD.to(precision), key_THD) * scale

    seen_RT, counts_RT = visibility(rows, len(key), branches, key_mask, window)
    some_R1 = counts_RT.any(-1, keepdim=True)
    kept_HRT = logits_HRT.masked_fill(~counts_RT & some_R1, float("-inf"))
    p = kept_HRT.softmax(-1)
    if heads == "mean":
        log_mass_HR = kept_HRT.logsumexp(-1) - logits_HRT.masked_fill(~seen_RT, float("-inf")).logsumexp(-1)
        p = total((softmax_over_heads(log_mass_HR, sequence)[..., None] * p).sum(0), sequence)
    return torch.where(some_R1, p, 0.0)


def visibility(
    rows: Tensor, tokens: int, branches: Tensor | None, key_mask: Tensor | None, window: Window | None = None
) -> tuple[Tensor, Tensor]:
    """bool [R, T] twice: the keys that a row's softmax runs over, and those of them that its policy counts."""
    positions_T = torch.arange(tokens, device=rows.device)
    seen_RT = positions_T <= rows[:, None]
    if branches is not None:
        seen_RT = seen_RT & ((branches == 0) | (branches == branches[rows][:, None]))
    if window is not None:
        seen_RT = seen_RT & window.reaches(rows)
    counts_RT = seen_RT & (positions_T != rows[:, None])
    return seen_RT, counts_RT if key_mask is None else counts_RT & key_mask


def check_arguments(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    scale: float,
    branches: Tensor | None,
    key_mask: Tensor | None,
    heads: Heads,
    window: Window | None = None,
) -> None:
    """Raise ValueError for the first argument that does not fit the others."""
    if query.ndim != 3 or key.ndim != 3 or query.shape[0] != key.shape[0] or query.shape[2] != key.shape[2]:
        raise ValueError(f"query must be [T, H, D] and key [T, K, D], got {_shape(query)} and {_shape(key)}")
    if query.dtype != key.dtype or not query.is_floating_point():
        raise ValueError(
            f"query and key must share a floating dtype, got {query.dtype} {_shape(query)} and "
            f"{key.dtype} {_shape(key)}"
        )
    if not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale!r}")
    if not (query.numel() and key.numel()):
        raise ValueError(f"query and key must hold a token, a head and a dimension, got {_shape(query)}, {_shape(key)}")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"query heads must be a multiple of key heads, got {_shape(query)}, {_shape(key)}")
    check_rows(rows, query.shape[0], f"query {_shape(query)}")
    for name, tensor, dtype in (("branches", branches, torch.int64), ("key_mask", key_mask, torch.bool)):
        if tensor is not None and (tensor.shape != query.shape[:1] or tensor.dtype != dtype):
            raise ValueError(
                f"{name} must be {str(dtype).removeprefix('torch.')} [T] like query {_shape(query)}, "
                f"got {tensor.dtype} {_shape(tensor)}"
            )
    for name, tensor in (("key", key), ("rows", rows), ("branches", branches), ("key_mask", key_mask)):
        if tensor is not None and tensor.device != query.device:
            raise ValueError(
                f"{name} {_shape(tensor)} must be on the device of query {_shape(query)}, {query.device}, "
                f"got {tensor.device}"
            )
    if window is not None:
        window.check(query.shape[0], query.device)
    if heads not in get_args(Heads):
        raise ValueError(f"heads={heads!r}; known: {', '.join(get_args(Heads))}")


def check_rows(rows: Tensor, tokens: int, of: str) -> None:
    """Raise ValueError unless `rows` are positions in a sequence of `tokens` tokens, which the message calls `of`."""
    if rows.ndim != 1 or rows.dtype != torch.int64:
        raise ValueError(f"rows must be int64 [R], got {rows.dtype} {_shape(rows)}")
    if rows.numel() and not (int(rows.min()) >= 0 and int(rows.max()) < tokens):
        raise ValueError(
            f"rows {_shape(rows)} must lie in 0..{tokens - 1} of {of}, got {int(rows.min())}..{int(rows.max())}"
        )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
