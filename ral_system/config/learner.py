"""The `learner` group: the trained policy's engine."""

from __future__ import annotations

from collections.abc import Iterator
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

    def problems(self) -> Iterator[str]:
        """Refuse gradients that would be added up in bfloat16."""
        # ZeRO 0 of DeepSpeed 0.19 refuses float32 sums of bfloat16 gradients, and its ZeRO 1 counts them several times.
        if self.dtype == "bfloat16" and (self.engine == "torch" or self.zero_stage < 2):
            engine = "engine=torch" if self.engine == "torch" else f"zero_stage={self.zero_stage}"
            yield (
                f"learner.{engine} cannot add up gradients in float32, which learner.dtype=bfloat16 needs; set "
                "learner.engine=deepspeed and learner.zero_stage to 2 or 3, or learner.dtype=float32"
            )
