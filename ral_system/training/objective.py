"""The objective of one micro-batch: surrogate, KL, what trains attention, what pictures change, what teachers add.

Shares of the loss and sums of metrics come back. Sums, not means: those of all micro-batches and
ranks add up, and the learner divides by global counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ral_system.attention.group import GroupAttention
from ral_system.batches.collate import TensorBatch
from ral_system.config.algorithm import AlgorithmConfig
from ral_system.models.policy import PolicyOutput
from ral_system.training.attention_term import attention_term
from ral_system.training.scores import UpdateScores
from ral_system.training.teaching import distillation
from ral_system.training.token_terms import token_terms
from ral_system.types import Counts, MicroBatch


@dataclass(frozen=True, slots=True)
class Objective:
    """A micro-batch's share of the update's loss, and metric sums over its response tokens."""

    loss: Tensor
    """Scalar, differentiable: all but the attention term."""
    sums: dict[str, Tensor]
    """Scalars, detached; add over micro-batches and ranks, and are reported per response token of the update."""
    weighted: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Sum and weight, detached; both add, and their quotient is reported."""
    maxima: dict[str, Tensor] = field(default_factory=dict)
    """Scalars, detached; the largest over micro-batches and ranks counts."""
    attention: Tensor | None = None
    """`AttentionTerm.loss`: L_attn, weighted unless its share of the gradient is held."""


def policy_objective(
    output: PolicyOutput,
    rows: Sequence[GroupAttention],
    batch: TensorBatch,
    samples: MicroBatch,
    counts: Counts,
    scores: UpdateScores,
    algorithm: AlgorithmConfig,
    *,
    largest_gap: float,
) -> Objective:
    """L = L_GRPO + beta · KL(pi || ref) + lambda_attn · L_attn + mu · L_GKD + gamma_attn · L_AD, to be minimised.

    arXiv 2602.04884, Eq 1, 4 and 7; `training.perception` may add a term, or guide L_GRPO. `rows` are the groups'
    attention policies. Tokens whose log-prob differs by more than `largest_gap` between learner and rollout engine have
    no part in the policy loss.
    """
    tokens = token_terms(output, batch, samples, counts, scores, algorithm, largest_gap=largest_gap)
    attention = attention_term(rows, batch, samples, counts, scores, algorithm.attention)
    taught, taught_metrics = distillation(output, rows, samples, scores.teaching, algorithm, counts)
    carried = attention.loss is None or attention.loss.requires_grad or not tokens.loss.requires_grad
    assert carried, "the probed layers' queries carry no gradient"
    return Objective(
        tokens.loss + taught,
        tokens.sums | attention.sums,
        tokens.weighted | taught_metrics | attention.weighted,
        tokens.maxima,
        attention.loss,
    )
