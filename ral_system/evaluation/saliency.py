"""Gradient saliency of visual tokens, and how far two rankings of them agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ral_system.attention.provenance import KeyKind
from ral_system.batches.collate import TensorBatch
from ral_system.models.policy import PolicyModel


def visual_saliency(policy: PolicyModel, batch: TensorBatch) -> Tensor:
    """Measure how much an answer's log-prob depends on each of its prompt's visual tokens: float32 [N].

    It is ‖∂ Σ_t ln pi(y_t) / ∂ e_n‖, e_n: the embedding of visual token n where it enters the first text layer. What a
    family adds to later layers (Qwen3-VL) is not part of it. `batch` has one sequence. Weights need no gradient.
    """
    entered: list[Tensor] = []

    def enter(decoder: nn.Module, positional: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, ...]:
        entered.append(inputs["inputs_embeds"].detach().requires_grad_())
        return positional, inputs | {"inputs_embeds": entered[0]}

    hook = policy.model.get_decoder().register_forward_pre_hook(enter, with_kwargs=True)
    try:
        with torch.enable_grad():
            total = policy(batch).log_probs.sum()
    finally:
        hook.remove()
    (gradient_1TE,) = torch.autograd.grad(total, entered)
    is_visual_T = (batch.keys.kind == KeyKind.IMAGE) | (batch.keys.kind == KeyKind.VIDEO)
    return gradient_1TE[0, is_visual_T].float().norm(dim=-1)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's correlation of two rankings of the same things, in [-1, 1]; ties share their mean rank.

    None if either ranks nothing above anything else.
    """
    ranks = np.stack([_ranks(one), _ranks(other)])
    return float(np.corrcoef(ranks)[0, 1]) if np.ptp(ranks, axis=1).all() else None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]
