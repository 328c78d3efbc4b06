"""What every policy loss is made of: inputs, result, and the function with its settings.

Suffixes: B sequences, R response positions (padded).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ral_system.config.policy_loss import PolicyLossGroup


@dataclass(frozen=True, slots=True)
class LossInputs:
    """One micro-batch. Log-probabilities are natural, of the response's tokens; only `log_probs` is differentiable."""

    log_probs: Tensor
    """log pi, the policy in training: [B, R]."""
    old: Tensor
    """log pi_old, the same weights as the rollout's, recomputed by the learner: [B, R]."""
    rollout: Tensor
    """log mu, as the rollout engine reported it: [B, R]."""
    advantages: Tensor
    """[B], one per sequence."""
    mask: Tensor
    """bool [B, R], which positions are response tokens."""
    top_policy: Tensor | None = None
    """log pi of the rollout's K most likely tokens (the sampled one among them) and of all others: [B, R, K + 1]."""
    top_rollout: Tensor | None = None
    """log mu of these tokens and all others: [B, R, K + 1]."""
    factors: Tensor | None = None
    """[B, R], at least 0, what the advantage of each token is multiplied by; None: 1."""

    def advantages_of_tokens(self) -> Tensor:
        """[B, R], with the factors."""
        advantages_BR = self.advantages[:, None].expand_as(self.log_probs)
        return advantages_BR if self.factors is None else advantages_BR * self.factors


class TokenLoss(NamedTuple):
    """A loss of every token, to be reduced to the update's mean."""

    values: Tensor
    """[B, R], 0 where masked."""
    held_back: Tensor
    """bool [B, R], detached: tokens without a gradient because the policy moved far enough."""


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A policy loss, as `registry.POLICY_LOSSES` holds it."""

    settings: type[PolicyLossGroup]
    """Class of `algorithm.policy_loss`, whose field `name` has the loss's name as its only value."""
    loss: Callable[[LossInputs, Any], TokenLoss]
    """(inputs, settings) → loss of every token."""


def masked_ratio(log_probs: Tensor, anchor: Tensor, mask: Tensor) -> Tensor:
    """pi / anchor, 1 where masked. `anchor` is a constant.

    The exponent is masked, not the result: so garbage behind the mask reaches no gradient (0 · inf is NaN).
    """
    return torch.exp(torch.where(mask, log_probs - anchor.detach(), 0.0))
