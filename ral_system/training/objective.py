"""The training objectives of one micro-batch: RAL's (surrogate, KL, attention divergence) and the supervised one.

Each returns the loss share to back-propagate and sums of metrics. Sums, not means: shares of all micro-batches and
ranks add up, and the learner divides by global counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ral_system.algorithms.attention_loss import attention_loss
from ral_system.algorithms.divergences import divergence
from ral_system.algorithms.kl import k3
from ral_system.algorithms.policy_loss import clipped_policy_loss
from ral_system.config.schema import AlgorithmConfig
from ral_system.data.collate import TensorBatch
from ral_system.models.policy import PolicyOutput
from ral_system.types import Counts, MicroBatch, Scores


@dataclass(frozen=True, slots=True)
class Objective:
    """A micro-batch's share of the update's loss, and metric sums over its response tokens."""

    loss: Tensor
    """Scalar, differentiable."""
    sums: dict[str, Tensor]
    """Scalars, detached; add over micro-batches and ranks."""
    maxima: dict[str, Tensor] = field(default_factory=dict)
    """Scalars, detached; the largest over micro-batches and ranks counts."""


def policy_objective(
    output: PolicyOutput,
    batch: TensorBatch,
    samples: MicroBatch,
    counts: Counts,
    behaviour: Scores,
    reference: Scores | None,
    algorithm: AlgorithmConfig,
) -> Objective:
    """L = L_GRPO + beta · KL(pi || ref) + lambda_attn · L_attn (arXiv 2602.04884, Eq 1 and 4, to be minimised).

    `behaviour` holds the old policy's log-probs and attention, made by the learner at the rollout's weights.
    """
    mask = batch.response_mask
    old_log_probs_BR = stack_log_probs(samples, behaviour, mask)
    surrogate = clipped_policy_loss(
        output.log_probs,
        old_log_probs_BR,
        batch.advantages,
        mask,
        clip_epsilon=algorithm.clip_epsilon,
        global_tokens=counts.tokens,
    )
    loss = surrogate.loss
    sums = {
        "policy/loss": surrogate.loss.detach() * counts.tokens,
        "policy/clip_fraction": surrogate.clipped.float(),
        "policy/entropy": output.entropy.sum(),
        "policy/approximate_kl_old": torch.where(mask, k3(output.log_probs, old_log_probs_BR), 0.0).sum().detach(),
    }
    if reference is not None:
        kl_BR = torch.where(mask, k3(output.log_probs, stack_log_probs(samples, reference, mask)), 0.0)
        loss = loss + algorithm.kl.coefficient * kl_BR.sum() / counts.tokens
        sums["policy/kl"] = kl_BR.sum().detach()
    assert output.attention is not None, "the policy objective reads the attention policy"
    divergence_BR = stack_divergence(output.attention, samples, behaviour, mask)
    attention = algorithm.attention
    if attention.weight > 0:
        term = attention_loss(
            divergence_BR,
            batch.advantages,
            mask,
            reduction=attention.reduction,
            global_tokens=counts.tokens,
            global_sequences=counts.sequences,
        )
        loss = loss + attention.weight * term
        sums["attention/loss"] = term.detach() * counts.tokens
    divergence_BR = divergence_BR.detach()
    for sign, selected in (("positive", batch.advantages > 0), ("negative", batch.advantages < 0)):
        chosen = mask & selected[:, None]
        sums[f"attention/jsd_{sign}"] = divergence_BR[chosen].sum()
        sums[f"tokens/{sign}"] = chosen.sum().float()
    sums["attention/visual_mass"] = visual_mass(output.attention, batch.token_types.split(batch.lengths)).detach()
    gap_BR = (old_log_probs_BR - stack_rollout_log_probs(samples, mask)).abs()
    sums["gate/log_prob_diff_mean"] = gap_BR.sum()
    return Objective(loss, sums, maxima={"gate/log_prob_diff_max": gap_BR.max()})


def supervised_objective(output: PolicyOutput, batch: TensorBatch, counts: Counts) -> Objective:
    """Cross-entropy of the response tokens, mean over the update's tokens."""
    nll = -output.log_probs.sum()
    sums = {"supervised/loss": nll.detach(), "supervised/token_accuracy": output.top1.sum().float()}
    return Objective(nll / counts.tokens, sums)


def stack_log_probs(samples: MicroBatch, scores: Scores, mask_BR: Tensor) -> Tensor:
    """Frozen log-probs as a padded tensor [B, R] like `mask`; 0 where padded."""
    return _scatter(np.concatenate([scores[s.id].log_probs for s in samples]), mask_BR)


def stack_rollout_log_probs(samples: MicroBatch, mask_BR: Tensor) -> Tensor:
    """What the rollout engine reported, as a padded tensor [B, R]; 0 where padded."""
    return _scatter(np.concatenate([np.asarray(s.rollout_log_probs, dtype=np.float32) for s in samples]), mask_BR)


def _scatter(flat_N: np.ndarray, mask_BR: Tensor) -> Tensor:
    padded = torch.zeros(mask_BR.shape, dtype=torch.float32, device=mask_BR.device)
    return padded.masked_scatter(mask_BR, torch.tensor(flat_N, device=mask_BR.device))


def stack_divergence(attention: list[Tensor], samples: MicroBatch, behaviour: Scores, mask_BR: Tensor) -> Tensor:
    """JSD of every response row to the old policy's, padded to [B, R]; 0 where padded."""
    rows = []
    for policy_RT, sample in zip(attention, samples, strict=True):
        old = behaviour[sample.id].attention
        assert old is not None, f"sample {sample.id} has no old attention record"
        rows.append(divergence(policy_RT, torch.tensor(old, device=policy_RT.device), "jsd"))
    divergence_N = torch.cat(rows)
    return torch.zeros(mask_BR.shape, device=mask_BR.device).masked_scatter(mask_BR, divergence_N)


def visual_mass(attention: list[Tensor], token_types: Sequence[Tensor]) -> Tensor:
    """Attention mass on visual keys, summed over all response rows (divide by their number for the mean)."""
    return torch.stack(
        [(p_RT * (types_T == 1)).sum() for p_RT, types_T in zip(attention, token_types, strict=True)]
    ).sum()
