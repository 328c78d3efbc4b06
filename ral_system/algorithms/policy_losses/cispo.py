"""CISPO: clip the weight, not the gradient (MiniMax-M1, arXiv 2506.13585)."""

from __future__ import annotations

import torch

from ral_system.algorithms.policy_losses.inputs import LossInputs, PolicyLoss, TokenLoss, masked_ratio
from ral_system.config.policy_loss import CispoLossConfig


def cispo_loss(inputs: LossInputs, config: CispoLossConfig) -> TokenLoss:
    """-sg(clip(r, 1 - clip_low, 1 + clip_high)) A ln pi with r = pi / pi_old: every token keeps a gradient.

    The paper sets no lower bound: clip_low = 1. r = 1 gives the plain policy gradient.
    """
    ratio_BR = masked_ratio(inputs.log_probs, inputs.old, inputs.mask).detach()
    weight_BR = ratio_BR.clamp(1 - config.clip_low, 1 + config.clip_high) * inputs.advantages_of_tokens()
    log_probs_BR = torch.where(inputs.mask, inputs.log_probs, 0.0)
    return TokenLoss(-weight_BR * log_probs_BR, torch.zeros_like(inputs.mask))


CISPO = PolicyLoss(CispoLossConfig, cispo_loss)
