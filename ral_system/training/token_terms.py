"""The terms of the objective that are sums over response tokens: policy loss, perception, entropy and KL.

Suffixes: B samples, R response positions (padded).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ral_system.algorithms.correction import rollout_correction
from ral_system.algorithms.kl import ESTIMATORS, k3
from ral_system.algorithms.policy_losses.inputs import LossInputs
from ral_system.algorithms.reduction import reduce_rows
from ral_system.batches.collate import TensorBatch
from ral_system.config.algorithm import AlgorithmConfig
from ral_system.models.policy import PolicyOutput
from ral_system.registry import POLICY_LOSSES
from ral_system.training.perception import perception
from ral_system.training.scores import UpdateScores
from ral_system.training.stacking import stack_log_probs, stack_rollout_log_probs, stack_top_tokens
from ral_system.types import Counts, MicroBatch, Scores


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """A micro-batch's share of these terms, and their metrics, as in `Objective`."""

    loss: Tensor
    sums: dict[str, Tensor]
    weighted: dict[str, tuple[Tensor, Tensor]]
    maxima: dict[str, Tensor]


def token_terms(
    output: PolicyOutput,
    batch: TensorBatch,
    samples: MicroBatch,
    counts: Counts,
    scores: UpdateScores,
    algorithm: AlgorithmConfig,
    *,
    largest_gap: float,
) -> TokenTerms:
    """L_GRPO, the perception term, the entropy bonus and KL(pi || ref)."""
    mask = batch.response_mask
    old_BR, rollout_BR = stack_log_probs(samples, scores.old, mask), stack_rollout_log_probs(samples, mask)
    gap_BR = torch.where(mask, (old_BR - rollout_BR).abs(), 0.0)
    outlier_BR = gap_BR > largest_gap
    perceived = perception(output, samples, scores.old, old_BR, mask, counts, algorithm.perception)
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
        "gate/log_prob_diff_mean": gap_BR.sum(),
        "gate/log_prob_outlier_share": outlier_BR.sum().float(),
    }
    if algorithm.entropy_coefficient > 0:
        loss = loss - algorithm.entropy_coefficient * output.entropy.sum() / counts.tokens
    if scores.reference is not None:
        kl = kl_sum(output, samples, scores.reference, mask, algorithm.kl.estimator)
        if algorithm.kl.place == "loss":
            loss = loss + algorithm.kl.coefficient * kl / counts.tokens
        sums["policy/kl"] = kl.detach()
    return TokenTerms(loss, sums, perceived.weighted, {"gate/log_prob_diff_max": gap_BR.max()} | perceived.maxima)


def kl_sum(output: PolicyOutput, samples: MicroBatch, reference: Scores, mask_BR: Tensor, estimator: str) -> Tensor:
    """Sum of the tokens' estimates of KL(pi || ref), in nats."""
    of_tokens_BR = ESTIMATORS[estimator](output.log_probs, stack_log_probs(samples, reference, mask_BR))
    return torch.where(mask_BR, of_tokens_BR, 0.0).sum()


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
