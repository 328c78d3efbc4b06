"""The objective of one micro-batch: surrogate, KL, what trains attention, what pictures change, what teachers add.

Shares of the loss and sums of metrics come back. Sums, not means: those of all micro-batches and
ranks add up, and the learner divides by global counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ral_system.algorithms.attention_objectives.credit import contrast, credit
from ral_system.algorithms.attention_objectives.evidence import evidence
from ral_system.algorithms.attention_objectives.group_anchor import group_anchor
from ral_system.algorithms.attention_objectives.inputs import AttentionInputs, Evidence
from ral_system.algorithms.attention_objectives.ral import ral
from ral_system.algorithms.attention_objectives.sharpening import sharpening
from ral_system.algorithms.correction import rollout_correction
from ral_system.algorithms.kl import ESTIMATORS, k3
from ral_system.algorithms.policy_losses.inputs import LossInputs
from ral_system.algorithms.reduction import reduce_rows
from ral_system.attention.group import GroupAttention
from ral_system.attention.metrics import STATISTICS
from ral_system.batches.collate import TensorBatch
from ral_system.batches.micro_batches import groups_of
from ral_system.config.algorithm import AlgorithmConfig
from ral_system.config.attention import AttentionConfig
from ral_system.config.attention_objective import EvidenceObjectiveConfig, SharpeningObjectiveConfig
from ral_system.models.policy import PolicyOutput
from ral_system.registry import POLICY_LOSSES
from ral_system.training.perception import perception
from ral_system.training.stacking import (
    old_glances,
    stack_divergence,
    stack_evidence,
    stack_glances,
    stack_log_probs,
    stack_rollout_log_probs,
    stack_sharpened,
    stack_top_tokens,
)
from ral_system.training.teaching import distillation
from ral_system.types import Counts, MicroBatch, Scores

OBJECTIVES: dict[str, Callable[[AttentionInputs, Any], Tensor]] = {
    "ral": ral,
    "credit": credit,
    "group_anchor": group_anchor,
    "evidence": evidence,
    "sharpening": sharpening,
}
"""By `algorithm.attention.objective.name`."""

_SIGNS: dict[str, Callable[[float], bool]] = {
    "": lambda advantage: True,
    "_positive": lambda advantage: advantage > 0,
    "_negative": lambda advantage: advantage < 0,
}


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
    """lambda_attn · L_attn, differentiable; None where there is none."""


def policy_objective(
    output: PolicyOutput,
    rows: Sequence[GroupAttention],
    batch: TensorBatch,
    samples: MicroBatch,
    counts: Counts,
    behaviour: Scores,
    reference: Scores | None,
    anchor: Scores,
    teaching: Scores,
    algorithm: AlgorithmConfig,
    *,
    attention_rows: int,
    evidence_rows: int,
    largest_gap: float,
) -> Objective:
    """L = L_GRPO + beta · KL(pi || ref) + lambda_attn · L_attn + mu · L_GKD + gamma_attn · L_AD, to be minimised.

    arXiv 2602.04884, Eq 1, 4 and 7; `training.perception` may add a term, or guide L_GRPO. `rows` are the groups'
    attention policies. `behaviour` holds the old policy's log-probs and what its rows look at, made by the learner at
    the rollout's weights; `anchor` the records that attention is compared with (the paper: also the old policy's);
    `teaching` the teachers' scores of the samples, empty without one. `attention_rows` is the number of attention rows
    of the whole update, over all ranks, and `evidence_rows` that of the rows that are drawn to evidence. Tokens whose
    log-prob differs by more than `largest_gap` between learner and rollout engine have no part in the policy loss.
    """
    mask = batch.response_mask
    old_BR, rollout_BR = stack_log_probs(samples, behaviour, mask), stack_rollout_log_probs(samples, mask)
    gap_BR = torch.where(mask, (old_BR - rollout_BR).abs(), 0.0)
    outlier_BR = gap_BR > largest_gap
    perceived = perception(output, samples, behaviour, old_BR, mask, counts, algorithm.perception)
    surrogate, sums = policy_loss(
        output,
        batch,
        samples,
        counts,
        old_BR,
        rollout_BR,
        algorithm,
        left_out_BR=outlier_BR | perceived.left_out,
        factors_BR=perceived.factors,
    )
    loss = algorithm.policy_weight * surrogate
    if perceived.loss is not None:
        loss = loss + perceived.loss
        sums["perception/loss"] = perceived.loss.detach() * counts.tokens
    sums |= {
        "policy/loss": surrogate.detach() * counts.tokens,
        "policy/entropy": output.entropy.sum().detach(),
        # KL(old ‖ pi): the tokens are the old policy's, and k3 is unbiased for the policy that its tokens come from.
        "policy/approximate_kl_old": torch.where(mask, k3(old_BR, output.log_probs), 0.0).sum().detach(),
    }
    if algorithm.entropy_coefficient > 0:
        loss = loss - algorithm.entropy_coefficient * output.entropy.sum() / counts.tokens
    if reference is not None:
        estimate = ESTIMATORS[algorithm.kl.estimator]
        kl_BR = torch.where(mask, estimate(output.log_probs, stack_log_probs(samples, reference, mask)), 0.0)
        if algorithm.kl.place == "loss":
            loss = loss + algorithm.kl.coefficient * kl_BR.sum() / counts.tokens
        sums["policy/kl"] = kl_BR.sum().detach()
    attention = algorithm.attention
    trained = attention.weight > 0 and attention.objective.trains_divergence
    with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
        divergence_BR, rows_BR = stack_divergence(rows, samples, anchor, attention.divergence)
    weighted_term = inputs = None
    if attention.weight > 0:
        inputs = AttentionInputs(
            divergence_BR,
            torch.tensor([s.attention_advantage for s in samples], device=rows_BR.device),
            rows_BR,
            stack_glances(rows, samples, behaviour, batch, attention) if attention.objective.reads_glances else (),
            attention.reduction,
            attention_rows,
            counts.sequences,
            evidence_of(rows, samples, batch, attention, evidence_rows),
            stack_sharpened(rows, samples, anchor, attention.objective)
            if isinstance(attention.objective, SharpeningObjectiveConfig)
            else None,
        )
        term = OBJECTIVES[attention.objective.name](inputs, attention.objective)
        assert term.requires_grad or not loss.requires_grad, "the probed layers' queries carry no gradient"
        weighted_term = attention.weight * term
        sums["attention/loss"] = term.detach() * counts.tokens
    taught, taught_metrics = distillation(output, rows, samples, teaching, algorithm, counts, attention_rows)
    loss = loss + taught
    weighted = taught_metrics | perceived.weighted
    weighted |= statistics_by_sign(samples, behaviour) | divergence_by_sign(divergence_BR, rows_BR, samples)
    weighted["attention/contrast"] = contrast_of(samples, behaviour)
    if inputs is not None and inputs.evidence is not None:
        weighted["attention/evidence_gate"] = (inputs.evidence.counted.sum().float(), torch.tensor(float(len(samples))))
    sums |= {"gate/log_prob_diff_mean": gap_BR.sum(), "gate/log_prob_outlier_share": outlier_BR.sum().float()}
    maxima = {"gate/log_prob_diff_max": gap_BR.max()} | perceived.maxima
    return Objective(loss, sums, weighted, maxima, weighted_term)


def policy_loss(
    output: PolicyOutput,
    batch: TensorBatch,
    samples: MicroBatch,
    counts: Counts,
    old_BR: Tensor,
    rollout_BR: Tensor,
    algorithm: AlgorithmConfig,
    *,
    left_out_BR: Tensor,
    factors_BR: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The configured loss of every token, corrected for the rollout engine and reduced by global counts; its metrics.

    Tokens that are left out weigh 0; the denominators stay. The factors are on the tokens' advantages.
    """
    settings, mask = algorithm.policy_loss, batch.response_mask
    top_policy, top_rollout = stack_top_tokens(output.tokens, samples, mask) if settings.top_tokens else (None, None)
    inputs = LossInputs(
        output.log_probs, old_BR, rollout_BR, batch.advantages, mask, top_policy, top_rollout, factors_BR
    )
    tokens = POLICY_LOSSES.get(settings.name).loss(inputs, settings)
    correction = rollout_correction(old_BR, rollout_BR, mask, algorithm.correction)
    reduction = algorithm.reduction
    loss = reduce_rows(
        (correction.weights * tokens.values).masked_fill(left_out_BR, 0.0),
        mask,
        reduction="sequence_sum" if reduction == "fixed_length" else reduction,
        global_tokens=counts.tokens,
        global_sequences=counts.sequences,
    )
    if reduction == "fixed_length":
        loss = loss / algorithm.fixed_length
    return loss, {
        "policy/clip_fraction": tokens.held_back.sum().float(),
        "correction/weight": torch.where(mask, correction.weights, 0.0).sum(),
        "correction/outside": correction.outside.sum().float(),
    }


def statistics_by_sign(samples: MicroBatch, behaviour: Scores) -> dict[str, tuple[Tensor, Tensor]]:
    """Sums over the old policy's attention rows and numbers of rows: of all, of samples with A > 0, and with A < 0."""
    totals = {f"attention/{name}{suffix}": [0.0, 0] for name in STATISTICS for suffix in _SIGNS}
    for sample in samples:
        signs = [suffix for suffix, belongs in _SIGNS.items() if belongs(sample.advantage)]
        for name, row in behaviour[sample.id].row_statistics.items():
            total = float(row.sum(dtype=np.float64))
            for suffix in signs:
                so_far = totals[f"attention/{name}{suffix}"]
                so_far[0], so_far[1] = so_far[0] + total, so_far[1] + len(row)
    return {name: (torch.tensor(total), torch.tensor(float(count))) for name, (total, count) in totals.items()}


def evidence_of(
    rows: Sequence[GroupAttention],
    samples: MicroBatch,
    batch: TensorBatch,
    attention: AttentionConfig,
    update_rows: int,
) -> Evidence | None:
    """Return the rows' distances from evidence, for an objective that asks for them."""
    if not isinstance(attention.objective, EvidenceObjectiveConfig):
        return None
    return stack_evidence(rows, samples, batch, attention.objective, update_rows)


def contrast_of(samples: MicroBatch, behaviour: Scores) -> tuple[Tensor, Tensor]:
    """Sums over responses of how much the worth of what they look at varies, and of the same with shuffled outcomes."""
    variance = shuffled = torch.zeros(())
    for group in groups_of(samples):
        if old := [glances for glances in old_glances(group, behaviour, judged=True) if glances is not None]:
            of_responses, of_orders = contrast(old[0].group, old[0].outcomes)
            own = [glances.index for glances in old]
            variance, shuffled = variance + of_responses[own].sum(), shuffled + of_orders[own].sum()
    return variance, shuffled


def divergence_by_sign(divergence_BR: Tensor, rows_BR: Tensor, samples: MicroBatch) -> dict[str, tuple[Tensor, Tensor]]:
    """Sum this update's divergences by the sign of the advantage."""
    found = {}
    for suffix, belongs in _SIGNS.items():
        selected_B = torch.tensor([belongs(s.advantage) for s in samples], device=rows_BR.device)
        chosen_BR = rows_BR & selected_B[:, None]
        found[f"attention/divergence{suffix}"] = (divergence_BR.detach()[chosen_BR].sum(), chosen_BR.sum().float())
    return found
