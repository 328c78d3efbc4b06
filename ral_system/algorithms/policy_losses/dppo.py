"""DPPO: a trust region in divergence instead of ratio (arXiv 2602.04879)."""

from __future__ import annotations

import torch
from torch import Tensor

from ral_system.algorithms.policy_losses.inputs import LossInputs, PolicyLoss, TokenLoss, masked_ratio
from ral_system.config.policy_loss import DppoLossConfig

_SMALLEST_LOG = -27.6310211159
"""ln 1e-12: probabilities below it count as this."""


def dppo_loss(inputs: LossInputs, config: DppoLossConfig) -> TokenLoss:
    """-M sg(min(r, C)) A ln pi with r = pi / mu: the gradient of -M r A, whose tokens are left out (M = 0) where

        (A > 0 and r > 1 and D > delta) or (A < 0 and r < 1 and D > delta)

    D is the divergence of mu and pi at the token's position, of `config.divergence`; mu the rollout's distribution, or
    with `anchor=old` the recomputed one, which the paper finds to collapse. Unlike a clipped ratio, a rare token may
    move by a large factor, and a likely one may not take much mass away. r = 1 gives the plain policy gradient.
    """
    anchor_BR = inputs.rollout if config.anchor == "rollout" else inputs.old
    advantages_BR = inputs.advantages_of_tokens()
    ratio_BR = masked_ratio(inputs.log_probs, anchor_BR, inputs.mask)
    divergence_BR = token_shift(inputs, anchor_BR, config)
    away_BR = ((advantages_BR > 0) & (ratio_BR > 1)) | ((advantages_BR < 0) & (ratio_BR < 1))
    held_back_BR = away_BR & (divergence_BR > config.delta) & inputs.mask
    weight_BR = ratio_BR.detach().clamp(max=config.max_ratio) * advantages_BR
    kept_BR = inputs.mask & ~held_back_BR
    return TokenLoss(-torch.where(kept_BR, weight_BR * torch.where(kept_BR, inputs.log_probs, 0.0), 0.0), held_back_BR)


@torch.no_grad()
def token_shift(inputs: LossInputs, anchor_BR: Tensor, config: DppoLossConfig) -> Tensor:
    """D(mu, pi) of every position, [B, R], from below: over {y_t, all others}, or {top K of mu, all others}."""
    kind = config.divergence
    if kind.startswith("binary"):
        mu, pi = (_with_rest(torch.where(inputs.mask, log_p, 0.0)) for log_p in (anchor_BR, inputs.log_probs))
    else:
        assert inputs.top_rollout is not None and inputs.top_policy is not None, "top-K needs the rollout's top tokens"
        mu, pi = inputs.top_rollout, inputs.top_policy
    return total_variation(mu, pi) if kind.endswith("tv") else kl_divergence(mu, pi)


def total_variation(log_mu: Tensor, log_pi: Tensor) -> Tensor:
    """½ Σ |mu - pi| over the last axis; for {y, rest} that is |mu(y) - pi(y)|."""
    return (log_mu.exp() - log_pi.exp()).abs().sum(-1) / 2


def kl_divergence(log_mu: Tensor, log_pi: Tensor) -> Tensor:
    """KL(mu ‖ pi) over the last axis, probabilities below 1e-12 counting as that."""
    log_mu, log_pi = log_mu.clamp(min=_SMALLEST_LOG), log_pi.clamp(min=_SMALLEST_LOG)
    return (log_mu.exp() * (log_mu - log_pi)).sum(-1)


def _with_rest(log_p: Tensor) -> Tensor:
    """[..., 2]: log p and log(1 - p)."""
    rest = torch.log(-torch.expm1(log_p.clamp(max=-1e-12)))
    return torch.stack([log_p, rest], dim=-1)


DPPO = PolicyLoss(DppoLossConfig, dppo_loss)
