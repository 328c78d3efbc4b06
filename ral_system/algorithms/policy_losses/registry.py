"""Every policy loss by its name in the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ral_system.algorithms.policy_losses.cispo import cispo_loss
from ral_system.algorithms.policy_losses.clip import clip_loss
from ral_system.algorithms.policy_losses.dppo import dppo_loss
from ral_system.algorithms.policy_losses.gspo import gspo_loss
from ral_system.algorithms.policy_losses.inputs import LossInputs, TokenLoss
from ral_system.algorithms.policy_losses.reinforce import reinforce_loss
from ral_system.algorithms.policy_losses.sapo import sapo_loss

POLICY_LOSSES: dict[str, Callable[[LossInputs, Any], TokenLoss]] = {
    "clip": clip_loss,
    "dppo": dppo_loss,
    "gspo": gspo_loss,
    "cispo": cispo_loss,
    "sapo": sapo_loss,
    "reinforce": reinforce_loss,
}
"""`name` → (inputs, the configuration's class of that name) → loss of every token."""
