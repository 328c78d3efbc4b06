"""The `learner` group: the trained policy's engine."""

from __future__ import annotations

from typing import Literal

from ral_system.config.base import Dtype, Fraction, Group, NonNegative, NonNegativeFloat, Positive, PositiveFloat


class LearnerConfig(Group):
    """The trained policy's engine."""

    engine: Literal["deepspeed", "torch"]
    world_size: Positive
    micro_batch: Positive
    """Sequences per forward-backward on one rank."""
    zero_stage: Literal[0, 1, 2, 3]
    dtype: Dtype
    gradient_checkpointing: bool
    learning_rate: NonNegativeFloat
    betas: tuple[Fraction, Fraction]
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat
    warmup_updates: NonNegative
    """Optimiser updates over which the learning rate rises linearly."""
