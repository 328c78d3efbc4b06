"""Divergences between rows of probabilities, by their terms and slopes. Pure functions.

Each is Σ_i f(p_i, q_i) with f ≥ 0 and f(x, x) = 0: to p ln(p/q) the Kullback-Leibler terms add q - p, which sums to 0
over distributions. So at p = q value and slope are exactly 0, term by term, and no rounding error is left to train on.

They are written with tensors' own methods: reports, which show title and unit, begin without the import of torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

_FLOOR = 1e-30
"""Probabilities below it count as this in logarithms and quotients, which keeps both finite."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """A divergence D(p, q) = Σ_i f(p_i, q_i), as `registry.DIVERGENCES` holds it."""

    terms_and_slopes: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(p, q) → f(p, q) and ∂f/∂p, elementwise, finite for all p, q ≥ 0, and exactly 0 at p = q."""
    linear: bool = False
    """Whether it grows with the distance from p = q, as total variation does, and not with its square."""
    title: str = "Divergence"
    """Its name in reports."""
    unit: Literal["nats", "number"] = "number"
    """Its unit in reports: nats for sums of logarithms."""


def _jsd(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    # With d = (p-q) / (p+q): f = (p+q)/4 · ((1+d) ln(1+d) + (1-d) ln(1-d)), rearranged where d is small, since the
    # two products then cancel to d².
    total = (p + q).clamp(min=_FLOOR)
    d = (p - q) / total
    log_p, log_q = _log_ratio(p, 0.5 * total, d), _log_ratio(q, 0.5 * total, -d)
    near = 0.25 * total * ((-d * d).log1p() + d * (log_p - log_q))
    return near.where(d.abs() < 0.5, 0.5 * (p * log_p + q * log_q)), 0.5 * log_p


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
    direct = (a.clamp(min=_FLOOR) / b.clamp(min=_FLOOR)).log()
    return excess.log1p().where(excess.abs() < 0.5, direct)


JSD = Divergence(_jsd, title="Jensen-Shannon divergence", unit="nats")
FORWARD_KL = Divergence(_forward_kl, title="Forward KL", unit="nats")
REVERSE_KL = Divergence(_reverse_kl, title="Reverse KL", unit="nats")
TV = Divergence(_tv, linear=True, title="Total variation distance")
HELLINGER = Divergence(_hellinger, title="Squared Hellinger distance")
