"""The `perceive` and `sft` groups: supervised stages."""

from __future__ import annotations

from typing import Annotated

from ral_system.config.base import Fraction, Group, NonNegative, NonNegativeFloat, Positive, PositiveFloat, Resumable
from ral_system.config.choices import Autocast
from ral_system.config.schedule import ScheduleConfig


class AttentionGuidanceConfig(Group):
    """Attention-guided objective (AVAR 2.3): the question's tokens look more at pictures, less at the system turn."""

    image: NonNegativeFloat
    """a on L_enh (the paper: 0.15); 0 and 0 leave attention unread."""
    system: NonNegativeFloat
    """b on L_sup (the paper: 0.15)."""

    @property
    def active(self) -> bool:
        """Whether it adds to the loss."""
        return self.image > 0 or self.system > 0


class SupervisedConfig(Group):
    """One supervised stage (perceive or sft)."""

    max_steps: Annotated[Positive, Resumable]
    batch: Positive
    """Demonstrations per optimiser update, over all ranks."""
    learning_rate: PositiveFloat
    betas: tuple[Fraction, Fraction]
    weight_decay: NonNegativeFloat
    warmup_updates: NonNegative
    schedule: ScheduleConfig
    evaluate_every: Positive
    """Steps between held-out evaluations."""
    evaluate_from: NonNegative
    """First step that is evaluated."""
    stop_at: Annotated[Fraction, Resumable]
    """Held-out score at which the stage ends."""
    attention_guidance: AttentionGuidanceConfig
    autocast: Autocast
    """Data type that the text model and the vision encoder multiply matrices in while weights, sums and the rest stay
    in float32 (`torch.autocast`). none: theirs. auto: bfloat16 where the learner's device multiplies it in hardware:
    CPUs with AVX-512 BF16 or AMX, or their likes on ARM, and CUDA devices from Ampere on. It has no effect with
    `learner.dtype=bfloat16`."""

    def evaluates(self, step: int) -> bool:
        """Return whether the held-out questions are asked after `step` steps."""
        return step == self.max_steps or (step >= self.evaluate_from and step % self.evaluate_every == 0)
