"""Divergences between rows of probabilities, by their terms and slopes. Pure functions.

Each is Σ_i f(p_i, q_i) with f ≥ 0 and f(x, x) = 0: to p ln(p/q) the Kullback-Leibler terms add q - p, which sums to 0
over distributions. So at p = q value and slope are exactly 0, term by term, and no rounding error is left to train on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ral_system.registry import DIVERGENCES

_FLOOR = 1e-30
"""Probabilities below it count as this in logarithms and quotients, which keeps both finite."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """A divergence D(p, q) = Σ_i f(p_i, q_i), as `registry.DIVERGENCES` holds it."""

    terms_and_slopes: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(p, q) → f(p, q) and ∂f/∂p, elementwise, finite for all p, q ≥ 0, and exactly 0 at p = q."""
    linear: bool = False
    """Whether it grows with the distance from p = q, as total variation does, and not with its square."""


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


def _jsd(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    # With d = (p-q) / (p+q): f = (p+q)/4 · ((1+d) ln(1+d) + (1-d) ln(1-d)), rearranged where d is small, since the
    # two products then cancel to d².
    total = (p + q).clamp(min=_FLOOR)
    d = (p - q) / total
    log_p, log_q = _log_ratio(p, 0.5 * total, d), _log_ratio(q, 0.5 * total, -d)
    near = 0.25 * total * (torch.log1p(-d * d) + d * (log_p - log_q))
    return torch.where(d.abs() < 0.5, near, 0.5 * (p * log_p + q * log_q)), 0.5 * log_p


def _reverse_kl(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    log_p = _log_ratio(p, q, (p - q) / q.clamp(min=_FLOOR))
    return p * log_p - (p - q), log_p


def _forward_kl(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    excess = (q - p) / p.clamp(min=_FLOOR)
    return q * _log_ratio(q, p, excess) - (q - p), -excess


def _tv(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    return 0.5 * (p - q).abs(), 0.5 * (p - q).sign()


def _hellinger(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    root_p, root_q = p.sqrt(), q.sqrt()
    difference = (p - q) / (root_p + root_q).clamp(min=_FLOOR)  # √p - √q, without cancellation
    return 0.5 * difference.square(), 0.5 * difference / p.clamp(min=_FLOOR).sqrt()


def _log_ratio(a: Tensor, b: Tensor, excess: Tensor) -> Tensor:
    """ln(a/b), where `excess` is (a-b)/b: with full precision where a is close to b."""
    direct = torch.log(a.clamp(min=_FLOOR) / b.clamp(min=_FLOOR))
    return torch.where(excess.abs() < 0.5, torch.log1p(excess), direct)


JSD = Divergence(_jsd)
FORWARD_KL = Divergence(_forward_kl)
REVERSE_KL = Divergence(_reverse_kl)
TV = Divergence(_tv, linear=True)
HELLINGER = Divergence(_hellinger)
