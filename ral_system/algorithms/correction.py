"""Correction for a rollout engine that computes other probabilities than the learner, at the same weights.

Suffixes: B sequences, R response positions (padded).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ral_system.config.algorithm import CorrectionConfig


class Correction(NamedTuple):
    """Weights of tokens; constants."""

    weights: Tensor
    """[B, R]; 1 where masked, or where nothing is corrected."""
    outside: Tensor
    """bool [B, R], tokens whose w the correction changed."""


@torch.no_grad()
def rollout_correction(old_BR: Tensor, rollout_BR: Tensor, mask_BR: Tensor, config: CorrectionConfig) -> Correction:
    """Weights of w = pi_old / mu, from log-probabilities in nats of the sampled tokens.

    truncate: min(w, high), truncated importance sampling (TIS). mask: w where low ≤ w ≤ high, else 0 (IcePop, arXiv
    2510.18855). reject_sequence: 1 for sequences whose geometric mean of w lies in [low, high], else 0 for all of their
    tokens. none: 1. Where the two engines agree every kind gives exactly 1.
    """
    gap_BR = torch.where(mask_BR, old_BR - rollout_BR, 0.0)
    ratio_BR = gap_BR.exp()
    if config.kind == "none":
        return Correction(torch.ones_like(ratio_BR), torch.zeros_like(mask_BR))
    if config.kind == "truncate":
        return Correction(ratio_BR.clamp(max=config.high), ratio_BR > config.high)
    if config.kind == "mask":
        outside_BR = (ratio_BR < config.low) | (ratio_BR > config.high)
        return Correction(ratio_BR.masked_fill(outside_BR, 0.0), outside_BR)
    mean_B1 = (gap_BR.sum(-1, keepdim=True) / mask_BR.sum(-1, keepdim=True).clamp(min=1)).exp()
    outside_BR = ((mean_B1 < config.low) | (mean_B1 > config.high)) & mask_BR
    return Correction(torch.ones_like(ratio_BR).masked_fill(outside_BR, 0.0), outside_BR)
