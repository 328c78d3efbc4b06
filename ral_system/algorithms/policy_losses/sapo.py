"""SAPO: a soft gate in place of the clip (arXiv 2511.20347)."""

from __future__ import annotations

import torch

from ral_system.algorithms.policy_losses.inputs import LossInputs, PolicyLoss, TokenLoss, masked_ratio
from ral_system.config.policy_loss import SapoLossConfig


def sapo_loss(inputs: LossInputs, config: SapoLossConfig) -> TokenLoss:
    """-(4 / tau) σ(tau (r - 1)) A with r = pi / pi_old; tau is tau_positive where A > 0, else tau_negative.

    The gradient fades smoothly as r leaves 1 either way, faster for the larger tau. r = 1 gives the plain one.
    """
    advantages_BR = inputs.advantages_of_tokens()
    ratio_BR = masked_ratio(inputs.log_probs, inputs.old, inputs.mask)
    tau_BR = torch.where(advantages_BR > 0, config.tau_positive, config.tau_negative).to(ratio_BR)
    objective_BR = 4 / tau_BR * torch.sigmoid(tau_BR * (ratio_BR - 1)) * advantages_BR
    return TokenLoss(-torch.where(inputs.mask, objective_BR, 0.0), torch.zeros_like(inputs.mask))


SAPO = PolicyLoss(SapoLossConfig, sapo_loss)
