"""How much of the gradient is the attention term's, measured where it enters: at the probed queries and keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def squared_norms(token_loss: Tensor, attention_loss: Tensor, probed: Sequence[Tensor]) -> Tensor:
    """Squared gradient norms of both losses at the probed layers' queries and keys: float64 [2].

    A partial backward pass, from the losses down to these layers; the graph is kept.
    """
    found = []
    for loss in (token_loss, attention_loss):
        gradients = torch.autograd.grad(loss, probed, retain_graph=True, allow_unused=True)
        found.append(sum((g.double().square().sum() for g in gradients if g is not None), torch.zeros(())))
    return torch.stack([norm.double().cpu() for norm in found])


def share(squared: Tensor) -> float:
    """‖g_attention‖ / (‖g_token‖ + ‖g_attention‖); 0 where both vanish."""
    token, attention = squared.sqrt().tolist()
    return attention / (token + attention) if attention > 0 else 0.0


def cap(squared: Tensor, limit: float) -> float:
    """The factor in (0, 1] that brings the attention term's share down to `limit`; 1 where it is not larger."""
    token, attention = squared.sqrt().tolist()
    return min(1.0, limit / (1 - limit) * token / attention) if attention > 0 else 1.0
