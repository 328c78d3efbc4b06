"""The optimiser settings of a stage, and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ral_system.config.choices import Stage
from ral_system.config.commands import TrainConfig
from ral_system.config.learner import LearnerConfig, RateFactorsConfig
from ral_system.config.schedule import ScheduleConfig
from ral_system.config.supervised import SupervisedConfig
from ral_system.models.policy import PolicyModel


@dataclass(frozen=True, slots=True)
class OptimSettings:
    """AdamW with linear warm-up, then a constant rate or a fall to a share of it.

    Example: `OptimSettings(1e-3, betas=(0.9, 0.99), weight_decay=0.0, max_grad_norm=1.0, warmup_updates=20,
    schedule=ScheduleConfig(shape="cosine", end=0.1), total_updates=400, rate_factors=RateFactorsConfig(vision=0.1,
    projector=1.0))`
    """

    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    max_grad_norm: float
    warmup_updates: int
    schedule: ScheduleConfig
    total_updates: int
    """Optimiser updates until the stage's last step; a supervised stage may end earlier."""
    rate_factors: RateFactorsConfig

    def rate(self, update: int) -> float:
        """Return the text model's learning rate at the `update`-th of T optimiser updates, counted from 0.

        With W = max(1, warmup_updates), progress p = max(0, update + 1 - W) / (T - W) and e = `schedule.end`:

            rate = learning_rate · min(1, (update + 1) / W) · f(p)
            constant  f(p) = 1
            linear    f(p) = 1 - (1 - e) · p
            cosine    f(p) = e + (1 - e) · (1 + cos(π · p)) / 2

        The full rate is reached at update W - 1, and its share e at the last update, T - 1. With T ≤ W there is only
        warm-up. The rate depends on nothing but `update` and T: a run that is continued with more steps takes the rates
        of the longer schedule from there on.

        Example: learning_rate 1, W = 2, T = 6, linear to 0.2 → 0.5, 1, 0.8, 0.6, 0.4, 0.2
        """
        warmup = max(1, self.warmup_updates)
        progress = min(1.0, max(0, update + 1 - warmup) / max(1, self.total_updates - warmup))
        return self.learning_rate * min(1.0, (update + 1) / warmup) * self._share(progress)

    def _share(self, progress: float) -> float:
        """Share of the full rate at this progress between the end of the warm-up, 0, and the last update, 1."""
        end = self.schedule.end
        if self.schedule.shape == "constant":
            return 1.0
        assert end is not None, "a rate that falls has an end"
        if self.schedule.shape == "linear":
            return 1 - (1 - end) * progress
        return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Trained parameters whose learning rates have the same factor."""

    rate_factor: float
    parameters: list[nn.Parameter]


def parameter_groups(policy: PolicyModel, factors: RateFactorsConfig) -> list[ParameterGroup]:
    """Group the trained parameters by the factor on their learning rate; parts with equal factors share a group."""
    model, family = policy.model, policy.family
    factor_of = dict.fromkeys(family.vision_encoder(model).parameters(), factors.vision)
    for module in family.projector(model):  # which may be in the vision encoder
        factor_of |= dict.fromkeys(module.parameters(), factors.projector)
    groups: dict[float, ParameterGroup] = {}
    for parameter in policy.parameters():
        if parameter.requires_grad:
            factor = factor_of.get(parameter, 1.0)
            groups.setdefault(factor, ParameterGroup(factor, [])).parameters.append(parameter)
    return list(groups.values())


def adamw(groups: Sequence[ParameterGroup], settings: OptimSettings) -> torch.optim.AdamW:
    """Build the optimiser of both engines. Its fused step, which CPUs and CUDA devices have, compiles nothing."""
    return torch.optim.AdamW(
        [{"params": group.parameters} for group in groups],
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def set_rates(optimizer: Any, groups: Sequence[ParameterGroup], rate: float) -> None:
    """Give every group of an optimiser, or of DeepSpeed's around it, its share of the text model's learning rate."""
    for of_optimizer, group in zip(optimizer.param_groups, groups, strict=True):
        of_optimizer["lr"] = rate * group.rate_factor


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of an optimiser's state, by names that stay the same.

    Under ZeRO-3 an optimiser has parameters during its step only, and its state always.
    """
    return {
        f"optimizer {at} {key}": value
        for at, state in enumerate(optimizer.state.values())
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def optim_settings(config: TrainConfig, stage: Stage) -> OptimSettings:
    """Return the settings of a supervised stage, or the learner's own, for rl."""
    source: LearnerConfig | SupervisedConfig
    if stage == "rl":
        source, total = config.learner, config.algorithm.steps * config.algorithm.updates_per_batch
    else:
        source, total = config.supervised(stage), config.supervised(stage).max_steps
    return OptimSettings(
        learning_rate=source.learning_rate,
        betas=source.betas,
        weight_decay=source.weight_decay,
        max_grad_norm=config.learner.max_grad_norm,
        warmup_updates=source.warmup_updates,
        schedule=source.schedule,
        total_updates=total,
        rate_factors=config.learner.rate_factors,
    )
