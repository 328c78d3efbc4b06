"""Log-probabilities of the distribution that sampling draws from."""

from __future__ import annotations

from torch import Tensor


def sampling_log_softmax(logits_RV: Tensor, *, temperature: float, banned_token_ids: Tensor) -> Tensor:
    """log softmax(logits / temperature) with banned tokens at probability 0; float32 [R, V].

    This, not the raw softmax, is the policy that rollouts are drawn from and that is trained: the same temperature and
    the same bans (media tokens) apply in both engines.
    """
    scaled = logits_RV.float() / temperature
    return scaled.index_fill(-1, banned_token_ids, float("-inf")).log_softmax(-1)


def entropy(log_softmax_RV: Tensor) -> Tensor:
    """Return the Shannon entropy per row in nats, differentiable; banned tokens (-inf) add 0 to it and its gradient."""
    return -(log_softmax_RV.exp() * log_softmax_RV.clamp(min=-1e4)).sum(-1)  # exp(-1e4) is 0
