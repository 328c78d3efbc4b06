"""PPO's clipped surrogate, its asymmetric range, and the dual clip."""

from __future__ import annotations

import torch

from ral_system.algorithms.policy_losses.inputs import LossInputs, PolicyLoss, TokenLoss, masked_ratio
from ral_system.config.policy_loss import ClipLossConfig


def clip_loss(inputs: LossInputs, config: ClipLossConfig) -> TokenLoss:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = pi / pi_old (PPO, arXiv 1707.06347).

    clip_high > clip_low is DAPO's clip-higher (arXiv 2503.14476). With `dual_clip` = c > 1 the objective of a token
    with A < 0 is at least c A (arXiv 1912.09729), so a token that has become much more likely pushes no harder
    than c. r = 1 gives the plain policy gradient.
    """
    advantages_BR = inputs.advantages_of_tokens()
    ratio_BR = masked_ratio(inputs.log_probs, inputs.old, inputs.mask)
    free_BR = ratio_BR * advantages_BR
    clipped_BR = ratio_BR.clamp(1 - config.clip_low, 1 + config.clip_high) * advantages_BR
    objective_BR, held_back_BR = torch.minimum(free_BR, clipped_BR), clipped_BR < free_BR
    if config.dual_clip is not None:
        floor_BR = config.dual_clip * advantages_BR
        limited_BR = (advantages_BR < 0) & (objective_BR < floor_BR)
        objective_BR, held_back_BR = torch.where(limited_BR, floor_BR, objective_BR), held_back_BR | limited_BR
    return TokenLoss(-torch.where(inputs.mask, objective_BR, 0.0), held_back_BR & inputs.mask)


CLIP = PolicyLoss(ClipLossConfig, clip_loss)
