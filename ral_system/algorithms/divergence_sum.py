"""Sum of a divergence's terms over rows of probabilities, differentiable in one of the two. Pure functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ral_system.algorithms.divergences import Divergence
from ral_system.registry import DIVERGENCES


def divergence(p: Tensor, q: Tensor, kind: str) -> Tensor:
    """D(p, q) over the last axis, in nats where it has a unit; differentiable once in p, q is a constant.

    jsd: ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p+q)/2, at most ln 2. forward_kl: KL(q ‖ p). reverse_kl: KL(p ‖ q).
    tv: ½ Σ |p - q|. hellinger: ½ Σ (√p - √q)². These are f-divergences: merging bins can only lower them.
    p = q gives exactly 0, value and gradient, so does a pair of all-zero rows. Raises ConfigError for an unknown kind.
    """
    return _Sum.apply(p, q, DIVERGENCES.get(kind))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, kind: Divergence) -> Tensor:
        terms, slopes = kind.terms_and_slopes(p, q)
        ctx.save_for_backward(slopes)
        return terms.sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return gradient[..., None] * slopes, None, None
