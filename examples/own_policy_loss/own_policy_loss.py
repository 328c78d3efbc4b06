"""A soft trust region: the policy gradient of a token fades out as its log-probability moves away."""

from typing import Literal

import torch

from ral_system.algorithms.policy_losses.inputs import LossInputs, PolicyLoss, TokenLoss
from ral_system.config.base import PositiveFloat
from ral_system.config.policy_loss import PolicyLossGroup


class SoftLossConfig(PolicyLossGroup):
    """Settings: `algorithm.policy_loss` with name=soft."""

    name: Literal["soft"]
    width: PositiveFloat
    """Nats from log pi_old at which the gradient has 1/e of its size."""


def soft_loss(inputs: LossInputs, config: SoftLossConfig) -> TokenLoss:
    """-sg(exp(-|Δ| / width)) A ln pi with Δ = ln pi - ln pi_old, so at Δ = 0 it is the plain policy gradient."""
    log_probs_BR = torch.where(inputs.mask, inputs.log_probs, 0.0)
    moved_BR = (log_probs_BR - torch.where(inputs.mask, inputs.old, 0.0)).detach().abs()
    weight_BR = torch.exp(-moved_BR / config.width) * inputs.advantages_of_tokens()
    return TokenLoss(-weight_BR * log_probs_BR, torch.zeros_like(inputs.mask))


SOFT = PolicyLoss(SoftLossConfig, soft_loss)
