"""REINFORCE, with and without an importance ratio."""

from __future__ import annotations

import torch

from ral_system.algorithms.policy_losses.inputs import LossInputs, PolicyLoss, TokenLoss, masked_ratio
from ral_system.config.policy_loss import ReinforceLossConfig


def reinforce_loss(inputs: LossInputs, config: ReinforceLossConfig) -> TokenLoss:
    """-A ln pi (Williams 1992), or with `ratio` -A r, r = pi / pi_old: unbiased off policy, without a bound.

    Without the ratio it is right for the first update of a batch alone. r = 1 gives the plain policy gradient.
    """
    advantages_BR = inputs.advantages_of_tokens()
    if config.ratio:
        objective_BR = masked_ratio(inputs.log_probs, inputs.old, inputs.mask) * advantages_BR
    else:
        objective_BR = torch.where(inputs.mask, inputs.log_probs, 0.0) * advantages_BR
    return TokenLoss(-torch.where(inputs.mask, objective_BR, 0.0), torch.zeros_like(inputs.mask))


REINFORCE = PolicyLoss(ReinforceLossConfig, reinforce_loss)
