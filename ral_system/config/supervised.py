"""The `perceive` and `sft` groups: supervised stages."""

from __future__ import annotations

from typing import Annotated

from ral_system.config.base import Fraction, Group, NonNegative, NonNegativeFloat, Positive, PositiveFloat, Resumable
from ral_system.config.choices import Autocast
from ral_system.config.schedule import ScheduleConfig


class AttentionGuidanceConfig(Group):
    """Attention-guided objective (AVAR 2.3): train the question's tokens to look more at pictures and less at the
    system turn. With both weights 0, attention is not measured."""

    image: NonNegativeFloat
    """Weight of L_enh, which raises the attention on pictures (the paper: 0.15)."""
    system: NonNegativeFloat
    """Weight of L_sup, which lowers the attention on the system turn (the paper: 0.15)."""

    @property
    def active(self) -> bool:
        """Whether the objective is on."""
        return self.image > 0 or self.system > 0


class SupervisedConfig(Group):
    """A supervised stage, which ends at a held-out score or after a number of steps."""

    max_steps: Annotated[Positive, Resumable]
    """Largest number of steps; each is one optimiser update."""
    batch: Positive
    """Number of demonstrations per optimiser update, over all ranks."""
    learning_rate: PositiveFloat
    """Learning rate after the warm-up."""
    betas: tuple[Fraction, Fraction]
    """Decay rates of AdamW's moment estimates."""
    weight_decay: NonNegativeFloat
    """Weight decay of AdamW."""
    warmup_updates: NonNegative
    """Number of optimiser updates over which the learning rate rises linearly."""
    schedule: ScheduleConfig
    """Learning rate after the warm-up."""
    evaluate_every: Positive
    """Number of steps between held-out evaluations."""
    evaluate_from: NonNegative
    """First step after which an evaluation may take place."""
    stop_at: Annotated[Fraction, Resumable]
    """Held-out score at which the stage ends."""
    attention_guidance: AttentionGuidanceConfig
    """Attention-guided objective."""
    autocast: Autocast
    """Data type of matrix products in the text model and the vision encoder; weights, sums and everything else stay in
    float32 (`torch.autocast`). none: no autocast. auto: bfloat16 if the learner's device has instructions for it (CPUs
    with AVX-512 BF16 or AMX, or the equivalents on ARM, and CUDA devices from Ampere on). It has no effect with
    `learner.dtype=bfloat16`."""

    def evaluates(self, step: int) -> bool:
        """Return whether the held-out questions are asked after `step` steps."""
        return step == self.max_steps or (step >= self.evaluate_from and step % self.evaluate_every == 0)
