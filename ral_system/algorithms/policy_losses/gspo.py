"""GSPO: one ratio per sequence (arXiv 2507.18071)."""

from __future__ import annotations

import torch

from ral_system.algorithms.policy_losses.inputs import LossInputs, PolicyLoss, TokenLoss
from ral_system.config.policy_loss import GspoLossConfig


def gspo_loss(inputs: LossInputs, config: GspoLossConfig) -> TokenLoss:
    """-min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), s = (pi(y) / pi_old(y))^(1/|y|), the same for y's tokens.

    With `reduction=sequence_mean` the gradient is the paper's: s A times the mean over y's tokens of ∇ ln pi, since
    every token carries s as sg(s) pi / sg(pi), the paper's GSPO-token. s = 1 gives the plain policy gradient.
    """
    mask = inputs.mask
    gap_BR = torch.where(mask, inputs.log_probs - inputs.old, 0.0).detach()
    sequence_B1 = torch.exp(gap_BR.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1))
    log_probs_BR = torch.where(mask, inputs.log_probs, 0.0)
    ratio_BR = sequence_B1 * torch.exp(log_probs_BR - log_probs_BR.detach())
    advantages_BR = inputs.advantages_of_tokens()
    free_BR = ratio_BR * advantages_BR
    clipped_BR = sequence_B1.clamp(1 - config.clip_low, 1 + config.clip_high) * advantages_BR
    held_back_BR = clipped_BR < free_BR
    objective_BR = torch.where(held_back_BR, clipped_BR, free_BR)
    return TokenLoss(-torch.where(mask, objective_BR, 0.0), held_back_BR & mask)


GSPO = PolicyLoss(GspoLossConfig, gspo_loss)
