"""The `learner` group: the trained policy's engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from ral_system.config.base import (
    Fraction,
    Group,
    NonNegative,
    NonNegativeFloat,
    OneOrMore,
    Positive,
    PositiveFloat,
    Resumable,
)
from ral_system.config.choices import Dtype
from ral_system.config.schedule import ScheduleConfig


class ForwardConfig(Group):
    """Forward passes; `ral-evaluate` makes some to measure where a model looks."""

    max_tokens: Annotated[Positive, Resumable]
    """Tokens per forward pass, and the backward pass that follows in training, on one rank; ranks that hold a
    micro-batch together (`learner.sequence_parallel`) add theirs up. A prompt counts once for all its responses in the
    pass; visual tokens count twice. A single sequence may be longer."""
    dtype: Dtype


class RateFactorsConfig(Group):
    """Factors on the learning rates of every stage, for parts of the model; the text model's factor is 1. Weight decay
    scales with the rate.
    """

    vision: NonNegativeFloat
    """Vision encoder, without the projector."""
    projector: NonNegativeFloat
    """Modules between vision encoder and text model."""

    def problems(self) -> Iterator[str]:
        """Refuse factors that freeze a part, which is said elsewhere."""
        for field, factor in self:
            if factor == 0:
                yield (
                    f"learner.rate_factors.{field}=0 leaves weights as they are and computes their gradients; set "
                    "model.freeze_vision=true, which freezes vision encoder and projector, or a factor above 0"
                )


class LoraConfig(Group):
    """Low-rank adapters, W + alpha / rank · B A, in place of training the model's own weights."""

    rank: Positive
    """Rows of A and columns of B."""
    alpha: PositiveFloat
    """B A is multiplied by alpha / rank; often the rank or twice it."""
    targets: Annotated[tuple[str, ...], OneOrMore, Field(min_length=1)]
    """Names of the adapted matrices: the last part of a module's name, such as q_proj, or more of its end."""
    vision: bool
    """Adapt targets in the vision encoder and projector as well, not in the text model alone."""


class LearnerGroup(ForwardConfig):
    """What both engines read."""

    world_size: Positive
    gradient_checkpointing: Annotated[bool, Resumable]
    learning_rate: NonNegativeFloat
    betas: tuple[Fraction, Fraction]
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat
    warmup_updates: NonNegative
    """Optimiser updates over which the learning rate rises linearly."""
    schedule: ScheduleConfig
    rate_factors: RateFactorsConfig
    lora: LoraConfig | None
    """null trains all weights that are not frozen."""

    @property
    def shards(self) -> int:
        """Shares of a batch: one for each rank, or for ranks that hold their micro-batches together."""
        return self.world_size

    @property
    def pass_tokens(self) -> int:
        """What a micro-batch may hold, in the tokens of `max_tokens`."""
        return self.max_tokens * (self.world_size // self.shards)


class TorchLearnerConfig(LearnerGroup):
    """Plain torch: one rank."""

    engine: Literal["torch"]

    def problems(self) -> Iterator[str]:
        """Refuse gradients that would be added up in bfloat16."""
        if self.dtype == "bfloat16":
            yield (
                "learner.engine=torch cannot add up gradients in float32, which learner.dtype=bfloat16 needs; choose "
                "learner=deepspeed with learner.zero_stage 2 or 3, or set learner.dtype=float32"
            )


class DeepSpeedLearnerConfig(LearnerGroup):
    """DeepSpeed: weights, gradients and optimiser on several ranks."""

    engine: Literal["deepspeed"]
    zero_stage: Literal[0, 1, 2, 3]
    """State partitioned over the ranks: 0 none, 1 the optimiser's, 2 also gradients, 3 also parameters."""
    offload: Annotated[Literal["none", "optimizer", "optimizer_and_parameters"], Resumable]
    """State kept in host memory instead of the device's: from ZeRO 1 on the optimiser's state, which the CPU then
    steps, and with ZeRO 3 also the parameters that no layer is computing with."""
    sequence_parallel: Annotated[Positive, Resumable]
    """Neighbouring ranks that hold each micro-batch together (DeepSpeed-Ulysses, arXiv 2309.14509): a rank has an equal
    part of its tokens, and in attention an equal part of the heads."""

    @property
    def shards(self) -> int:
        """One for each group of ranks."""
        return self.world_size // self.sequence_parallel

    def problems(self) -> Iterator[str]:
        """Refuse gradients that would be added up in bfloat16, and offloading of what ranks do not share."""
        if self.offload == "optimizer" and self.zero_stage == 0:
            yield (
                "learner.offload=optimizer needs an optimiser that ranks share, and with learner.zero_stage=0 each has "
                "a whole one; set learner.zero_stage to 1, 2 or 3, or learner.offload=none"
            )
        if self.offload == "optimizer_and_parameters" and self.zero_stage < 3:
            yield (
                "learner.offload=optimizer_and_parameters needs parameters that ranks share, and with "
                f"learner.zero_stage={self.zero_stage} each has all of them; set learner.zero_stage=3"
                f"{', or learner.offload=optimizer' if self.zero_stage else ', or learner.offload=none'}"
            )
        if self.world_size % self.sequence_parallel:
            yield (
                f"learner.sequence_parallel={self.sequence_parallel} does not divide learner.world_size="
                f"{self.world_size}; set world_size to a multiple of it, or sequence_parallel to 1"
            )
        # ZeRO 0 of DeepSpeed 0.19 refuses float32 sums of bfloat16 gradients, and its ZeRO 1 counts them several times.
        if self.dtype == "bfloat16" and self.zero_stage < 2:
            yield (
                f"learner.zero_stage={self.zero_stage} cannot add up gradients in float32, which learner.dtype="
                "bfloat16 needs; set learner.zero_stage to 2 or 3, or learner.dtype=float32"
            )


LearnerConfig = Annotated[TorchLearnerConfig | DeepSpeedLearnerConfig, Field(discriminator="engine")]
