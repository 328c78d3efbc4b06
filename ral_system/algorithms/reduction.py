"""Means over the rows of an update, by counts that are global and fixed before its first backward."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from ral_system.config.choices import Reduction


def reduce_rows(
    values_BR: Tensor, mask_BR: Tensor, *, reduction: Reduction, global_tokens: int, global_sequences: int
) -> Tensor:
    """This micro-batch's share of the mean over the whole update: shares of all ranks and micro-batches add up to it.

    token_mean: Σ values / global_tokens. sequence_mean: Σ_b (mean over b's rows) / global_sequences. sequence_sum:
    Σ values / global_sequences. A sequence without rows contributes 0. Raises ValueError for another reduction.
    """
    kept = torch.where(mask_BR, values_BR, 0.0)
    if reduction == "token_mean":
        return kept.sum() / global_tokens
    if reduction == "sequence_mean":
        return (kept.sum(-1) / mask_BR.sum(-1).clamp(min=1)).sum() / global_sequences
    if reduction == "sequence_sum":
        return kept.sum() / global_sequences
    raise ValueError(f"reduction={reduction!r}; known: {', '.join(get_args(Reduction))}")
