"""Objectives on the difference that pictures make: log-probs of the same tokens with and without parts of them.

Suffixes: B sequences, R response positions (padded).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ral_system.config.perception import PapoConfig

_MOST_NATS = 20.0
"""Bound of the difference of log-probs, so its exponential is finite."""
MOST_DEPENDENCE = 10.0
"""Bound of the dependence of a token; beyond it there is no gradient."""
_ROUNDING = 1e-9


def visual_dependence(log_probs: Tensor, blinded: Tensor) -> Tensor:
    """k3 = e^s - s - 1 of every token, s = log pi' - log pi with the blinded view pi' as a constant; from 0 to 10.

    For tokens of pi its mean estimates KL(pi ‖ pi'). Its slope in log pi is 1 - pi'/pi, at most 1 upwards and without
    bound downwards, and its mean gradient is that of KL(pi' ‖ pi).
    """
    difference = (blinded.detach() - log_probs).clamp(-_MOST_NATS, _MOST_NATS)
    return (torch.expm1(difference) - difference).clamp(max=MOST_DEPENDENCE)


def papo(
    log_probs_BR: Tensor, entropy_BR: Tensor, dependence_BR: Tensor, seen_BR: Tensor, settings: PapoConfig, tokens: int
) -> Tensor:
    """L = -gamma · mean_t k3 + eta_1 · mean_t H, to be minimised (PAPO, arXiv 2507.06448).

    H is the exact entropy, which must then be differentiable, or -log pi of the sampled tokens. Means are over the
    `tokens` response tokens of the whole update. `seen_BR` are tokens whose prompt has media; the others contribute 0.
    Whatever the reward, all responses count. The bonus has no optimum: the policy loss and its bounds hold it.
    """
    loss = -settings.weight * torch.where(seen_BR, dependence_BR, 0.0).sum() / tokens
    if settings.entropy_weight == 0:
        return loss
    entropy_BR = entropy_BR if settings.exact_entropy else -log_probs_BR
    return loss + settings.entropy_weight * torch.where(seen_BR, entropy_BR, 0.0).sum() / tokens


def largest_share(values_BR: Tensor, mask_BR: Tensor, share: float) -> Tensor:
    """Mark the ⌈share · T⌉ largest values of each sequence of T tokens: bool [B, R]. Of equal ones the first are taken.

    VPPO's token filter (arXiv 2510.09285).
    """
    most_B1 = torch.ceil(share * mask_BR.sum(-1, keepdim=True).double() - _ROUNDING)
    order_BR = values_BR.masked_fill(~mask_BR, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return mask_BR & (order_BR.argsort(dim=-1) < most_B1)


def advantage_factors(dependence: np.ndarray, least: float) -> np.ndarray:
    """Return VPPO's factors on the advantages of an update, from the mean dependence of each of its responses.

    beta + n (beta_max - beta), n = dependence scaled to [0, 1], beta_max = beta + (1 - beta) / mean(n): from beta =
    `least` upwards, with mean 1. Exactly 1 where all are alike.
    """
    spread = np.ptp(dependence) if len(dependence) else 0.0
    if spread == 0:
        return np.ones(len(dependence))
    scaled = (dependence - dependence.min()) / spread
    return least + scaled * (1 - least) / scaled.mean()
