"""The attention term's share of the gradient, measured where the term enters: at the queries of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ral_system.attention.group import GroupAttention
from ral_system.config.attention import AttentionConfig
from ral_system.config.choices import Dtype
from ral_system.models.policy import PolicyOutput
from ral_system.training.objective import Objective

NOISE: dict[Dtype, float] = {"float32": 1e-6, "bfloat16": 5e-3}
"""Largest gradient of the attention term, relative to the token loss's, that may be rounding error and is not scaled.
The key is the coarser dtype of the weights and of the recorded rows."""


class Losses(Protocol):
    """Two losses that are shared out: those of a `training.objective.Objective`, for example."""

    @property
    def loss(self) -> Tensor:
        """The token loss, with all else but the attention term."""

    @property
    def attention(self) -> Tensor | None:
        """The attention term."""


def without_weight(output: PolicyOutput, groups: Sequence[GroupAttention], *others: object) -> Objective:
    """Return losses of 0 for a rank that has no samples in a micro-batch.

    Their backward passes go through the same layers as those of other ranks: under ZeRO-3, all ranks gather each
    layer's weights together, also in partial backward passes. `output` is the output for any sample, with the rows of
    its `groups`.
    """
    parts = [part.sum() for group in groups for layer in group.layers for part in (layer.query, layer.key)]
    return Objective(0.0 * output.log_probs.sum(), {}, attention=0.0 * torch.stack(parts).sum())


def squared_norms(objective: Losses, probed: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Squared gradient norms of the token loss and the attention term at the rows' queries: float64 [2].

    `probed` as in `PolicyOutput`. Each response has rows of its own, so the norms add up over micro-batches and ranks
    whatever shares a prompt; a prompt's keys are shared, and theirs would not. Partial backward passes, from the losses
    down to these layers; the graph is kept.
    """
    found, queries = [], [query for query, _ in probed]
    for loss in (objective.loss, objective.attention):
        assert loss is not None, "there is no attention term"
        gradients = torch.autograd.grad(loss, queries, retain_graph=True, allow_unused=True)
        of_rows = (g[:, :, rows] for g, (_, rows) in zip(gradients, probed, strict=True) if g is not None)
        found.append(sum((g.double().square().sum() for g in of_rows), torch.zeros(())))
    return torch.stack([norm.double().cpu() for norm in found])


def share(squared: Tensor) -> float:
    """‖g_attention‖ / (‖g_token‖ + ‖g_attention‖); 0 where both vanish."""
    token, attention = squared.sqrt().tolist()
    return attention / (token + attention) if attention > 0 else 0.0


def cap(squared: Tensor, limit: float) -> float:
    """Return the factor in [0, 1] that brings the attention term's share down to `limit`.

    The factor is 1 if the share is not larger, and 0 if only the token loss has no gradient.
    """
    token, attention = squared.sqrt().tolist()
    return min(1.0, limit / (1 - limit) * token / attention) if attention > 0 else 1.0


def hold(squared: Tensor, target: float, dtype: Dtype) -> float:
    """Return the factor that brings the attention term's share to `target`.

    The factor is 1 if the term's gradient is 0, or so small that it may be rounding error in `dtype` (`NOISE`). It is 0
    if only the token loss has no gradient.
    """
    token, attention = squared.sqrt().tolist()
    return target / (1 - target) * token / attention if attention > NOISE[dtype] * token else 1.0


def scaled(squared: Tensor, factor: float) -> Tensor:
    """The norms with the attention term multiplied by `factor`."""
    return squared * torch.tensor([1.0, factor**2], dtype=squared.dtype)


def factor_and_metrics(squared: Tensor, settings: AttentionConfig, dtype: Dtype) -> tuple[float, dict[str, float]]:
    """The factor that `settings` ask for, 1 if they bound or hold no share, and the share with it. `dtype` is that of
    the weights.
    """
    factor, factors = 1.0, {}
    if settings.target_gradient_share is not None:
        coarser: Dtype = "bfloat16" if "bfloat16" in (dtype, settings.record_dtype) else "float32"
        factor = hold(squared, settings.target_gradient_share, coarser)
    elif settings.max_gradient_share is not None:
        factor = cap(squared, settings.max_gradient_share)
    if settings.gradient_share is not None:
        factors = {"attention/gradient_factor": factor, "attention/gradient_factor_max": factor}
    held = share(scaled(squared, factor))
    return factor, {"attention/gradient_share": held, "attention/gradient_share_max": held, **factors}
