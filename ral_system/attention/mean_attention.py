"""How much attention some keys get on average, differentiable, for any layer and head.

Suffixes: R rows, H query heads, T keys, D head dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ral_system.attention.group import LayerAttention
from ral_system.attention.policy import visibility
from ral_system.attention.window import Window
from ral_system.device_kind import device_kind

_BLOCK_BYTES = 32 << 20
"""Size of one block's logits."""


def log_mean_attention(
    layer: LayerAttention,
    rows_R: Tensor,
    *key_masks_T: Tensor,
    branches: Tensor | None = None,
    window: Window | None = None,
) -> list[Tensor]:
    """log mean_{q in rows, k in mask} A_qk for every head, [H] for each mask; A the layer's own softmax.

    At least one row, and a key in each mask that some row sees; `branches` and `window` as in `attention_policy`. Taken
    through logarithms, so finite however little attention the keys get. Memory is linear in the keys: a block of rows
    is computed once more in the backward pass.
    """
    heads, tokens = layer.query.shape[1], len(layer.key)
    size = max(1, _BLOCK_BYTES // (4 * heads * tokens))
    blocks = [
        checkpoint(_block, query_RHD, layer.key, rows, layer.scale, branches, window, *key_masks_T, use_reentrant=False)
        for query_RHD, rows in zip(layer.query.split(size), rows_R.split(size), strict=True)
    ]
    log_sums = [torch.stack(of_mask).logsumexp(0) for of_mask in zip(*blocks, strict=True)]
    return [log_sum - math.log(len(rows_R) * int(m.sum())) for log_sum, m in zip(log_sums, key_masks_T, strict=True)]


def _block(
    query_RHD: Tensor,
    key: Tensor,
    rows_R: Tensor,
    scale: float,
    branches: Tensor | None,
    window: Window | None,
    *key_masks_T: Tensor,
) -> list[Tensor]:
    """log Σ_q Σ_k A_qk of a block of rows, [H] for each mask."""
    precision = torch.promote_types(query_RHD.dtype, torch.float32)
    with torch.autocast(device_kind(key.device), enabled=False):
        key_HDT = key.to(precision).repeat_interleave(query_RHD.shape[1] // key.shape[1], dim=1).permute(1, 2, 0)
        logits_HRT = query_RHD.to(precision).transpose(0, 1) @ key_HDT * scale
        seen_RT, _ = visibility(rows_R, len(key), branches, None, window)
        log_all_HR = logits_HRT.masked_fill(~seen_RT, float("-inf")).logsumexp(-1)
        found = []
        for mask_T in key_masks_T:
            # far below any logit instead of -inf: a row that sees no such key contributes nothing, and no NaN
            log_part_HR = logits_HRT.masked_fill(~(seen_RT & mask_T), -1e30).logsumexp(-1)
            found.append((log_part_HR - log_all_HR).logsumexp(-1))
    return found
