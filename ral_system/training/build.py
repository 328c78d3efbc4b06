"""Construction of what a learner trains, and of the engine that holds it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ral_system.config.learner import LearnerConfig
from ral_system.config.model import ModelConfig
from ral_system.models.lora import Adapters
from ral_system.models.policy import PolicyModel
from ral_system.training.engine import Engine
from ral_system.training.optim import OptimSettings
from ral_system.training.torch_engine import TorchEngine


def loading(
    learner: LearnerConfig, settings: OptimSettings, device: torch.device, timeout_s: float
) -> AbstractContextManager[Any]:
    """Load the policy as its engine will hold it: with ZeRO 3 the ranks share each weight out as soon as it is read.

    Other engines hold whole models, which need nothing. `timeout_s` bounds each wait for another rank at the start.
    """
    if learner.engine == "torch" or learner.zero_stage < 3:
        return nullcontext()
    from ral_system.training.deepspeed_engine import loading_by_shards  # optional dependency, slow to import

    return loading_by_shards(settings, learner, device, timeout_s)


def choose_trained(policy: PolicyModel, model: ModelConfig, learner: LearnerConfig) -> Adapters | None:
    """Let gradients reach what the settings train: adapters, which are returned, or all weights but frozen ones.

    To be called before an engine shards the weights.
    """
    if learner.lora is not None:
        return Adapters(policy, learner.lora)
    if model.freeze_vision:
        for module in (policy.family.vision_encoder(policy.model), *policy.family.projector(policy.model)):
            module.requires_grad_(False)
    return None


def build_engine(
    learner: LearnerConfig, settings: OptimSettings, policy: PolicyModel, device: torch.device, timeout_s: float
) -> Engine:
    """Put a policy whose trained parameters are marked into an engine; `timeout_s` is that of `loading`."""
    if learner.engine == "torch":
        return TorchEngine(policy, settings, device, gradient_checkpointing=learner.gradient_checkpointing)
    from ral_system.training.deepspeed_engine import DeepSpeedEngine  # optional dependency, slow to import

    return DeepSpeedEngine(policy, settings, learner, device, timeout_s)
