"""The `learner` group: the engine that trains the policy."""

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
    """Settings of forward passes. `ral-evaluate` needs some to measure where a model looks."""

    max_tokens: Annotated[Positive, Resumable]
    """Largest number of tokens per forward pass (and its backward pass) on one rank. Ranks that share a micro-batch
    (`learner.sequence_parallel`) add up theirs. A prompt counts once for all its responses in the pass, and visual
    tokens count twice. A single sequence may be longer."""
    dtype: Dtype
    """Data type of the weights and of computation."""


class RateFactorsConfig(Group):
    """Factors on the learning rates of every stage, for parts of the model; that of the text model is 1. Weight decay
    scales with the learning rate.
    """

    vision: NonNegativeFloat
    """Factor for the vision encoder, without the projector."""
    projector: NonNegativeFloat
    """Factor for the projector: the modules between vision encoder and text model."""

    def problems(self) -> Iterator[str]:
        """Refuse factors of 0: `model.freeze_vision` is the setting to freeze a part."""
        for field, factor in self:
            if factor == 0:
                yield (
                    f"learner.rate_factors.{field}=0 leaves weights as they are and computes their gradients; set "
                    "model.freeze_vision=true, which freezes vision encoder and projector, or a factor above 0"
                )


class LoraConfig(Group):
    """Low-rank adapters, W + alpha / rank · B A, trained instead of the model's own weights."""

    rank: Positive
    """Rows of A and columns of B."""
    alpha: PositiveFloat
    """Scale: B A is multiplied by alpha / rank. Often the rank or twice the rank."""
    targets: Annotated[tuple[str, ...], OneOrMore, Field(min_length=1)]
    """Names of the modules to adapt: the end of a module's name, such as `q_proj` or `self_attn.q_proj`."""
    vision: bool
    """Also adapt targets in the vision encoder and projector, not only in the text model."""


class LearnerGroup(ForwardConfig):
    """Settings of both engines."""

    world_size: Positive
    """Number of ranks: processes that train together."""
    gradient_checkpointing: Annotated[bool, Resumable]
    """Recompute activations in the backward pass instead of storing them."""
    learning_rate: NonNegativeFloat
    """Learning rate of RL after the warm-up."""
    betas: tuple[Fraction, Fraction]
    """Decay rates of AdamW's moment estimates, in RL."""
    weight_decay: NonNegativeFloat
    """Weight decay of AdamW, in RL."""
    max_grad_norm: PositiveFloat
    """Norm to which gradients are clipped, in all stages."""
    warmup_updates: NonNegative
    """Number of optimiser updates over which the learning rate of RL rises linearly."""
    schedule: ScheduleConfig
    """Learning rate after the warm-up."""
    rate_factors: RateFactorsConfig
    """Learning rates of parts of the model."""
    lora: LoraConfig | None
    """Low-rank adapters. null trains all weights that are not frozen."""

    @property
    def shards(self) -> int:
        """Number of parts that a batch is divided into: one per rank, or per group of ranks that share
        micro-batches."""
        return self.world_size

    @property
    def pass_tokens(self) -> int:
        """Largest number of tokens of a micro-batch, counted as for `max_tokens`."""
        return self.max_tokens * (self.world_size // self.shards)


class TorchLearnerConfig(LearnerGroup):
    """Plain PyTorch with one rank."""

    engine: Literal["torch"]

    def problems(self) -> Iterator[str]:
        """Refuse gradients that would be added up in bfloat16."""
        if self.dtype == "bfloat16":
            yield (
                "learner.engine=torch cannot add up gradients in float32, which learner.dtype=bfloat16 needs; choose "
                "learner=deepspeed with learner.zero_stage 2 or 3, or set learner.dtype=float32"
            )


class DeepSpeedLearnerConfig(LearnerGroup):
    """DeepSpeed, which can partition weights, gradients and optimiser state over ranks."""

    engine: Literal["deepspeed"]
    zero_stage: Literal[0, 1, 2, 3]
    """ZeRO stage: what is partitioned over the ranks. 0: nothing, 1: optimiser state, 2: also gradients, 3: also
    parameters."""
    offload: Annotated[Literal["none", "optimizer", "optimizer_and_parameters"], Resumable]
    """State kept in host memory. optimizer (from ZeRO 1 on): the optimiser state; the CPU then updates it.
    optimizer_and_parameters (ZeRO 3): also parameters while no layer uses them."""
    sequence_parallel: Annotated[Positive, Resumable]
    """Number of neighbouring ranks that share each micro-batch (DeepSpeed-Ulysses, arXiv 2309.14509). Each has an equal
    part of the tokens and, in attention, an equal part of the heads."""
    collective_timeout_s: Annotated[PositiveFloat, Resumable]
    """Time limit, in seconds, for each wait of the ranks for each other, by gloo or NCCL, after the start. It must
    exceed the longest difference between two ranks, and on GPUs also the work that is queued before the wait."""

    @property
    def shards(self) -> int:
        """Number of parts that a batch is divided into: one per group of ranks."""
        return self.world_size // self.sequence_parallel

    def problems(self) -> Iterator[str]:
        """Refuse gradients that would be added up in bfloat16, and offloading of state that is not partitioned."""
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
