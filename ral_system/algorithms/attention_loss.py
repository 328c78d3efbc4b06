"""The attention loss of Reinforced Attention Learning (arXiv 2602.04884, Eq 2-4). Pure functions.

Suffixes: B sequences, R rows (response positions, padded), T keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ral_system.algorithms.reduction import Reduction, reduce_rows


def jensen_shannon(p_RT: Tensor, q_RT: Tensor) -> Tensor:
    """JSD(p || q) = ½ KL(p || m) + ½ KL(q || m), m = (p + q) / 2, per row, in nats: 0 ≤ JSD ≤ ln 2.

    Any leading shape; the last axis is summed. Differentiable once in both. 0 · ln 0 = 0, and the gradient there is 0;
    p = q gives exactly 0, value and gradient, so does a pair of all-zero rows.

    Written as Σ ½ p ln(2p/(p+q)) + ½ q ln(2q/(p+q)). Its gradient in p is ½ ln(2p/(p+q)) (paper 3.4): what the
    logarithms add to it cancels, so they count as constants. Autograd's own cancellation would leave rounding errors.
    """
    total = p_RT + q_RT
    return 0.5 * (_x_log_ratio(p_RT, total) + _x_log_ratio(q_RT, total)).sum(-1)


def _x_log_ratio(x: Tensor, total: Tensor) -> Tensor:
    """x · ln(2x / total), 0 where x = 0; the logarithm is a constant to autograd."""
    positive = x > 0
    ratio = torch.where(positive, 2 * x / torch.where(positive, total, 1.0), 1.0)
    return x * torch.log(ratio).detach()


def attention_loss(
    divergence_BR: Tensor,
    advantages_B: Tensor,
    mask_BR: Tensor,
    *,
    reduction: Reduction,
    global_tokens: int,
    global_sequences: int,
) -> Tensor:
    """L_attn = E_t[ A_t · JSD(p_pi^t || p_old^t) ] (Eq 3), to be minimised; A_t is the sequence's group advantage.

    A > 0 pulls a row towards the old policy's attention, A < 0 pushes it away; no clipping, no ratio. The expectation
    is a mean over all rows of the update (`token_mean`) or over sequences of each one's mean (`sequence_mean`), by
    global counts. At p = p_old both value and gradient are exactly 0.
    """
    return reduce_rows(
        advantages_B[:, None] * divergence_BR,
        mask_BR,
        reduction=reduction,
        global_tokens=global_tokens,
        global_sequences=global_sequences,
    )
