"""Token-level policy losses. Pure functions of tensors; every denominator is global and passed in.

Suffixes: B sequences, R response positions (padded).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PolicyLoss(NamedTuple):
    """A loss share to back-propagate, and how often the clip held a token back."""

    loss: Tensor
    """Scalar: this micro-batch's part of the global mean."""
    clipped: Tensor
    """Scalar, detached: number of tokens whose gradient the clip removed."""


def clipped_policy_loss(
    log_probs_BR: Tensor,
    old_log_probs_BR: Tensor,
    advantages_B: Tensor,
    mask_BR: Tensor,
    *,
    clip_epsilon: float,
    global_tokens: int,
) -> PolicyLoss:
    """PPO's clipped surrogate with a group advantage (GRPO, arXiv 2402.03300, Eq 3), as a loss.

    L = - 1/N · Σ_{b,t} mask · min( r A, clip(r, 1-ε, 1+ε) A ),   r = exp(log pi - log pi_old)

    N = `global_tokens`: response tokens of the whole update, over all ranks and micro-batches. log-probs in nats,
    differentiable in `log_probs_BR` only. Degenerate cases: r = 1 gives the plain policy gradient -A ∇log pi / N; an
    empty mask gives 0.
    """
    # Masking the exponent, not only the result, keeps garbage behind the mask out of the gradient too (0 · inf = nan).
    ratio = torch.exp(torch.where(mask_BR, log_probs_BR - old_log_probs_BR.detach(), 0.0))
    advantages_BR = advantages_B[:, None].expand_as(ratio)
    unclipped = ratio * advantages_BR
    clipped = ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon) * advantages_BR
    objective = torch.where(mask_BR, torch.minimum(unclipped, clipped), 0.0)
    held_back = ((clipped < unclipped) & mask_BR).sum()
    return PolicyLoss(-objective.sum() / global_tokens, held_back.detach())
