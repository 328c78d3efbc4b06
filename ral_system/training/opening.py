"""The engine that a configuration asks for."""

from __future__ import annotations

import torch

from ral_system.config.learner import LearnerConfig
from ral_system.models.policy import PolicyModel
from ral_system.training.engine import Engine
from ral_system.training.optim import OptimSettings
from ral_system.training.torch_engine import TorchEngine


def open_engine(
    learner: LearnerConfig, settings: OptimSettings, policy: PolicyModel, device: torch.device, timeout_s: float
) -> Engine:
    """Start the engine of one rank. `timeout_s` bounds what ranks do together."""
    if learner.engine == "torch":
        return TorchEngine(policy, settings, device, gradient_checkpointing=learner.gradient_checkpointing)
    from ral_system.training.deepspeed_engine import DeepSpeedEngine  # optional dependency, slow to import

    return DeepSpeedEngine(policy, settings, learner, device, collective_timeout_s=timeout_s)
