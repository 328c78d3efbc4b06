"""Estimators of KL(pi || ref) from the log-probs of sampled tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def k3(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Schulman's k3: exp(d) - d - 1 with d = log ref - log pi, elementwise in nats.

    Unbiased for KL(pi || ref) when tokens come from pi; never negative; 0 exactly where the two agree. Differentiable
    in `log_probs`; `reference_log_probs` is taken as constant.
    """
    difference = reference_log_probs.detach() - log_probs
    return torch.expm1(difference) - difference
