"""The `algorithm` group: the training objective and the shape of one step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ral_system.config.attention import AttentionConfig
from ral_system.config.base import (
    Divergence,
    Group,
    NonNegative,
    NonNegativeFloat,
    Positive,
    Reduction,
    ResponseFormat,
    TokenDivergence,
)
from ral_system.config.policy_loss import PolicyLossConfig

Advantage = Literal["grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "gdpo"]


class KLConfig(Group):
    """Penalty towards the frozen reference policy."""

    coefficient: NonNegativeFloat
    """beta, on the mean over tokens whatever `reduction`; 0 starts no reference scorer unless something else needs
    it.
    """
    estimator: Literal["k1", "k2", "k3"]
    """Estimate of KL(pi ‖ reference) from the sampled tokens (Schulman): k1 has no gradient on average, k2 has KL's
    own, k3 is never negative and the usual choice."""
    place: Literal["loss", "reward"]
    """Add it to the loss, or take each response's sum, at the rollout's weights, off its reward."""


class TokenDistillationConfig(Group):
    """Distillation of a teacher's next-token distributions on the student's own rollouts (L_GKD, Eq 7)."""

    weight: NonNegativeFloat
    """mu, on the mean over response tokens."""
    divergence: TokenDivergence
    """Student against teacher: KL(student ‖ teacher), KL(teacher ‖ student), or their generalised JSD."""
    jsd_beta: Annotated[float, Field(gt=0, lt=1)]
    """Teacher's share of the mixture, with divergence=jsd."""
    top_k: Positive | None
    """Tokens that the teacher sends per position, beside the mass of the rest (a lower bound); null: the vocabulary."""


class AttentionDistillationConfig(Group):
    """Distillation of a teacher's attention rows (L_AD, Eq 5-6): of the last layer, mean over heads, every row's weight
    the same whatever the advantage. Rows, keys and the record's form are those of `algorithm.attention`."""

    weight: NonNegativeFloat
    """gamma_attn."""
    divergence: Divergence
    """Student against teacher (the paper: jsd)."""
    reduction: Reduction
    """The paper: sequence_sum."""


class DistillationConfig(Group):
    """Learning from a teacher on the student's own rollouts; 0 and 0 start none."""

    tokens: TokenDistillationConfig
    attention: AttentionDistillationConfig


class CorrectionConfig(Group):
    """For what the rollout engine and the learner compute differently: tokens weighed by w = pi_old / mu."""

    kind: Literal["none", "truncate", "mask", "reject_sequence"]
    """truncate: min(w, high), truncated importance sampling. mask: w inside [low, high], else 0 (IcePop).
    reject_sequence: 0 for sequences whose geometric mean of w lies outside, else 1."""
    low: Annotated[float, Field(gt=0, le=1)]
    high: Annotated[float, Field(ge=1)]


class OverlongConfig(Group):
    """Responses that were cut, or nearly, at rollout.max_new_tokens or the end of rollout.max_model_len (DAPO,
    arXiv 2503.14476)."""

    handling: Literal["none", "mask", "penalty"]
    """mask: a response that was cut gets advantage 0. penalty: take up to 1 off the reward as it nears the limit."""
    buffer: Positive
    """Tokens before the limit over which the penalty grows."""


class AlgorithmConfig(Group):
    """The training objective and the shape of one step."""

    name: str
    """Label in reports and run names."""
    response_format: ResponseFormat
    """`<think>…</think><answer>…</answer>`, or the answer alone (RAL-zero)."""
    steps: Positive
    """Rollout batches to train on."""
    prompts_per_step: Positive
    completions_per_prompt: Annotated[int, Field(ge=2)]
    """G, the group that a completion's reward is compared within."""
    sampling_rounds: Positive
    """Most rounds of rollouts per step. 1 trains on every group; more replace groups whose rewards are all alike by the
    next prompts' (dynamic sampling), and rewards no longer overlap with scoring."""
    max_staleness: NonNegative
    """Weight versions that a batch may lag behind those it trains. 0 generates and trains in turn; N generates up to N
    batches ahead while one trains. Learners keep N + 1 versions of their weights in host memory, to score a batch with
    those that made it; up to N published ones may wait for the engines."""
    overlong: OverlongConfig
    updates_per_step: Positive
    """K: optimiser updates per pass over a rollout batch, each on 1/K of it."""
    passes_per_step: Positive
    """Passes over each rollout batch (PPO's epochs): the same K updates in the same order. Old log-probs and attention
    stay those of the rollout's weights, so from the second pass on every sample is off policy."""
    policy_weight: NonNegativeFloat
    """On the policy loss; 0 learns from a teacher without rewards."""
    advantage: Advantage
    """How a completion's reward becomes its advantage."""
    policy_loss: PolicyLossConfig
    reduction: Literal[Reduction, "fixed_length"]
    """How the policy loss is averaged over the update: over its tokens, or over its sequences' means, sums, or sums
    divided by `fixed_length` (Dr. GRPO)."""
    fixed_length: Positive
    """What each sequence's sum is divided by with reduction=fixed_length."""
    correction: CorrectionConfig
    entropy_coefficient: NonNegativeFloat
    """Bonus on the mean entropy of the next-token distributions over all tokens, in nats."""
    kl: KLConfig
    attention: AttentionConfig
    distillation: DistillationConfig

    @property
    def updates_per_batch(self) -> int:
        """Optimiser updates on one rollout batch, over all its passes."""
        return self.updates_per_step * self.passes_per_step
