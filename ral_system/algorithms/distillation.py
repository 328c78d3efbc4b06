"""Divergences between next-token distributions, for on-policy distillation (GKD, arXiv 2306.13649). Pure functions.

As in `divergences`, terms are rearranged so that value and slope are exactly 0, token by token, where student and
teacher agree. Suffixes: N tokens, V vocabulary, K kept tokens.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ral_system.config.choices import TokenDivergence

TOKEN_DIVERGENCES: tuple[TokenDivergence, ...] = get_args(TokenDivergence)

_LOWEST = -80.0
"""Log-probabilities below it count as this: banned tokens, and what float32 cannot tell from them."""
LEFT_OUT = -1e4
"""Log-prob in place of -inf: its probability is 0, and products with it are not nan."""


def token_divergence(log_p: Tensor, log_q: Tensor, kind: TokenDivergence, beta: float = 0.5) -> Tensor:
    """D of student p and teacher q over the last axis, in nats, from log-probabilities; differentiable once in `log_p`.

    reverse_kl: KL(p ‖ q). forward_kl: KL(q ‖ p). jsd: beta KL(q ‖ m) + (1 - beta) KL(p ‖ m) with m = beta q +
    (1 - beta) p (GKD, Eq 1), 0 < beta < 1. `log_q` is a constant. Both -inf, as of a banned token: contributes 0. All
    are f-divergences: merging tokens can only lower them. Raises ValueError for another kind.
    """
    if kind not in TOKEN_DIVERGENCES:
        raise ValueError(f"kind={kind!r}; known: {', '.join(TOKEN_DIVERGENCES)}")
    if kind == "jsd" and not 0 < beta < 1:
        raise ValueError(
            f"beta={beta} must lie between 0 and 1; at the ends jsd vanishes: use forward_kl or reverse_kl"
        )
    return _TokenDivergence.apply(log_p, log_q, kind, beta)


def kept_and_rest(log_softmax_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """Log-probabilities of the kept tokens and, last, of all others together: [N, K + 1]."""
    rest_N = log_softmax_NV.scatter(-1, ids_NK, LEFT_OUT).logsumexp(-1)
    return torch.cat([log_softmax_NV.gather(-1, ids_NK), rest_N[:, None]], dim=-1)


def top_tokens(log_softmax_NV: Tensor, sampled_N: Tensor, count: int) -> Tensor:
    """Ids [N, K] of the K most likely tokens; the sampled token takes the last place where it is not among them.

    K = min(count, V). So what the student did is always compared one to one.
    """
    return with_sampled(log_softmax_NV.topk(min(count, log_softmax_NV.shape[-1])).indices, sampled_N)


def with_sampled(ids_NK: Tensor, sampled_N: Tensor) -> Tensor:
    """Put the sampled token in the last place of rows that lack it; changes `ids_NK`, and returns it."""
    missing_N = (ids_NK != sampled_N[:, None]).all(-1)
    ids_NK[:, -1] = torch.where(missing_N, sampled_N, ids_NK[:, -1])
    return ids_NK


def divergence_terms(log_p: Tensor, log_q: Tensor, kind: TokenDivergence, beta: float) -> tuple[Tensor, Tensor]:
    """Terms of the divergence, one a token of the vocabulary, and their slopes ∂D/∂log p."""
    log_p, log_q = log_p.clamp(min=_LOWEST), log_q.clamp(min=_LOWEST)
    p, q, ratio = log_p.exp(), log_q.exp(), log_p - log_q
    if kind == "reverse_kl":
        return p * ratio - q * ratio.expm1(), p * ratio
    if kind == "forward_kl":
        slopes = q * ratio.expm1()
        return slopes - q * ratio, slopes
    log_p_to_m, log_q_to_m = -torch.log1p(beta * (-ratio).expm1()), -torch.log1p((1 - beta) * ratio.expm1())
    slopes = (1 - beta) * p * log_p_to_m
    return slopes + beta * q * log_q_to_m, slopes


class _TokenDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor, kind: TokenDivergence, beta: float) -> Tensor:
        terms, slopes = divergence_terms(log_p, log_q, kind, beta)
        ctx.save_for_backward(slopes)
        return terms.sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return gradient[..., None] * slopes, None, None, None
