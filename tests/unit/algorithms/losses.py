"""Every policy loss, on inputs written by hand."""

from dataclasses import replace
from typing import Any

import torch
from pydantic import TypeAdapter

from ral_system.algorithms.policy_losses.inputs import LossInputs, TokenLoss
from ral_system.config.policy_loss import PolicyLossConfig
from ral_system.registry import POLICY_LOSSES

CLIP = {"name": "clip", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}
DPPO = {"name": "dppo", "divergence": "binary_tv", "delta": 0.15, "top_k": 2, "anchor": "rollout", "max_ratio": 20.0}
EVERY: dict[str, dict[str, Any]] = {
    "clip": CLIP,
    "clip_higher": CLIP | {"clip_high": 0.28},
    "dual_clip": CLIP | {"dual_clip": 3.0},
    "dppo_binary_tv": DPPO,
    "dppo_binary_kl": DPPO | {"divergence": "binary_kl", "delta": 0.05},
    "dppo_top_k_tv": DPPO | {"divergence": "top_k_tv"},
    "dppo_top_k_kl": DPPO | {"divergence": "top_k_kl", "delta": 0.05},
    "dppo_old": DPPO | {"anchor": "old"},
    "gspo": {"name": "gspo", "clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {"name": "cispo", "clip_low": 1.0, "clip_high": 4.0},
    "sapo": {"name": "sapo", "tau_positive": 1.0, "tau_negative": 1.05},
    "reinforce": {"name": "reinforce", "ratio": True},
    "reinforce_plain": {"name": "reinforce", "ratio": False},
}
PARSE: TypeAdapter[Any] = TypeAdapter(PolicyLossConfig)


def lost(inputs: LossInputs, config: dict[str, Any]) -> TokenLoss:
    parsed = PARSE.validate_python(config)
    return POLICY_LOSSES.get(parsed.name).loss(inputs, parsed)


def inputs_of(pi: list[list[float]], mu: list[list[float]], advantages: list[float], **more: Any) -> LossInputs:
    """Build inputs from probabilities, with pi differentiable; pi_old = mu unless given."""
    log_mu = torch.tensor(mu, dtype=torch.float64).log()
    found = LossInputs(
        log_probs=torch.tensor(pi, dtype=torch.float64).log().requires_grad_(),
        old=log_mu,
        rollout=log_mu,
        advantages=torch.tensor(advantages, dtype=torch.float64),
        mask=torch.ones(len(pi), len(pi[0]), dtype=torch.bool),
    )
    return replace(found, **more)


def by_hand(config: dict[str, Any], pi: float, mu: float, advantage: float, **more: Any) -> tuple[float, float, bool]:
    """Value, gradient with respect to log pi, and whether it is held back, of one token."""
    inputs = inputs_of([[pi]], [[mu]], [advantage], **more)
    found = lost(inputs, config)
    gradient = torch.zeros(())
    if found.values.requires_grad:
        (gradient,) = torch.autograd.grad(found.values.sum(), inputs.log_probs)
    assert not found.held_back.requires_grad
    return found.values.item(), gradient.item(), bool(found.held_back)
