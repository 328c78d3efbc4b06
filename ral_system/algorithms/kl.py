"""Schulman's estimators of KL(pi ‖ ref) from the log-probs of sampled tokens, elementwise in nats.

All are 0 exactly where the two agree, and take `reference` as constant; d = log ref - log pi.
"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(log_probs: Tensor, reference: Tensor) -> Tensor:
    """-d: unbiased, of either sign. Its gradient ∇ log pi is 0 on average: as a loss it does not hold the policy
    back.
    """
    return log_probs - reference.detach()


def k2(log_probs: Tensor, reference: Tensor) -> Tensor:
    """d² / 2: biased, never negative; on policy its expected gradient is that of the KL itself."""
    return (reference.detach() - log_probs).square() / 2


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """exp(d) - d - 1: unbiased when tokens come from pi, never negative."""
    difference = reference.detach() - log_probs
    return torch.expm1(difference) - difference


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
