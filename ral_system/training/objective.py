"""The training objectives of one micro-batch: RAL's (surrogate, KL, attention divergence) and the supervised one.

Each returns the loss share to back-propagate and sums of metrics. Sums, not means: shares of all micro-batches and
ranks add up, and the learner divides by global counts once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ral_system.algorithms.attention_guidance import attention_guidance
from ral_system.algorithms.attention_loss import attention_loss
from ral_system.algorithms.distillation import kept_and_rest, token_divergence
from ral_system.algorithms.divergences import Divergence
from ral_system.algorithms.kl import k3
from ral_system.algorithms.policy_loss import clipped_policy_loss
from ral_system.algorithms.reduction import reduce_rows
from ral_system.attention.mean_attention import log_mean_attention
from ral_system.attention.metrics import STATISTICS
from ral_system.attention.provenance import KeyKind
from ral_system.attention.sequence import SequenceAttention
from ral_system.config.schema import AlgorithmConfig, AttentionGuidanceConfig, TokenDistillationConfig
from ral_system.data.collate import TensorBatch
from ral_system.models.policy import PolicyOutput
from ral_system.types import Counts, MicroBatch, Scores

_SIGNS: dict[str, Callable[[float], bool]] = {
    "": lambda advantage: True,
    "_positive": lambda advantage: advantage > 0,
    "_negative": lambda advantage: advantage < 0,
}


@dataclass(frozen=True, slots=True)
class Objective:
    """A micro-batch's share of the update's loss, and metric sums over its response tokens."""

    loss: Tensor
    """Scalar, differentiable: all but RAL's attention term."""
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
    batch: TensorBatch,
    samples: MicroBatch,
    counts: Counts,
    behaviour: Scores,
    reference: Scores | None,
    anchor: Scores,
    teaching: Scores,
    algorithm: AlgorithmConfig,
    attention_rows: int,
) -> Objective:
    """L = L_GRPO + beta · KL(pi || ref) + lambda_attn · L_attn + mu · L_GKD + gamma_attn · L_AD, to be minimised.

    arXiv 2602.04884, Eq 1, 4 and 7. `behaviour` holds the old policy's log-probs and what its rows look at, made by the
    learner at the rollout's weights; `anchor` the records that attention is compared with (the paper: also the old
    policy's); `teaching` what teachers say of the samples, empty without one; `attention_rows` is the number of
    attention rows of the whole update, over all ranks.
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
    loss = algorithm.policy_weight * surrogate.loss
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
    attention = algorithm.attention
    with torch.set_grad_enabled(torch.is_grad_enabled() and attention.weight > 0):
        divergence_BR, rows_BR = stack_divergence(output.attention, samples, anchor, attention.divergence)
    weighted_term = None
    if attention.weight > 0:
        term = attention_loss(
            divergence_BR,
            batch.advantages,
            rows_BR,
            reduction=attention.reduction,
            global_tokens=attention_rows,
            global_sequences=counts.sequences,
        )
        assert term.requires_grad or not loss.requires_grad, "the probed layers' queries carry no gradient"
        weighted_term = attention.weight * term
        sums["attention/loss"] = term.detach() * counts.tokens
    taught, taught_metrics = distillation(output, samples, teaching, algorithm, counts, attention_rows)
    loss = loss + taught
    weighted = (
        taught_metrics | statistics_by_sign(samples, behaviour) | divergence_by_sign(divergence_BR, rows_BR, samples)
    )
    gap_BR = (old_log_probs_BR - stack_rollout_log_probs(samples, mask)).abs()
    sums["gate/log_prob_diff_mean"] = gap_BR.sum()
    return Objective(loss, sums, weighted, {"gate/log_prob_diff_max": gap_BR.max()}, weighted_term)


def distillation(
    output: PolicyOutput,
    samples: MicroBatch,
    teaching: Scores,
    algorithm: AlgorithmConfig,
    counts: Counts,
    attention_rows: int,
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """mu · L_GKD + gamma_attn · L_AD (Eq 5-7), with the metrics of what is on; exactly 0 where student = teacher."""
    tokens, attention = algorithm.distillation.tokens, algorithm.distillation.attention
    loss, metrics = output.log_probs.new_zeros(()), {}
    if tokens.weight > 0:
        divergence_N = distil_tokens(output.log_softmax, samples, teaching, tokens)
        loss = loss + tokens.weight * divergence_N.sum() / counts.tokens
        metrics["distillation/token_divergence"] = _mean_of(divergence_N)
    if attention.weight > 0:
        assert output.attention is not None
        last = [replace(rows, layers=rows.layers[-1:]) for rows in output.attention]
        divergence_BR, rows_BR = stack_divergence(last, samples, teaching, attention.divergence)
        loss = loss + attention.weight * reduce_rows(
            divergence_BR,
            rows_BR,
            reduction=attention.reduction,
            global_tokens=attention_rows,
            global_sequences=counts.sequences,
        )
        metrics["distillation/attention_divergence"] = _mean_of(divergence_BR[rows_BR])
    if metrics:
        sizes = torch.tensor([float(teaching[s.id].nbytes) for s in samples])
        metrics["distillation/record_bytes"] = _mean_of(sizes)
    return loss, metrics


def distil_tokens(
    log_softmax_NV: Tensor, samples: MicroBatch, teaching: Scores, config: TokenDistillationConfig
) -> Tensor:
    """Divergence of every response token's distribution to the teacher's: [N]. A ValueError names the sample."""
    found, counts = [], [len(s.response_token_ids) for s in samples]
    for sample, log_p_RV in zip(samples, log_softmax_NV.split(counts), strict=True):
        record = teaching[sample.id].tokens
        assert record is not None, f"sample {sample.id} has no teacher's distributions"
        log_q = torch.tensor(record.log_probs, device=log_p_RV.device)
        if record.ids is None:
            if log_q.shape != log_p_RV.shape:
                raise ValueError(
                    f"sample {sample.id}: the teacher's distributions are {tuple(log_q.shape)}, the student's "
                    f"{tuple(log_p_RV.shape)}; set algorithm.distillation.tokens.top_k"
                )
            log_p = log_p_RV
        else:
            log_p = kept_and_rest(log_p_RV, torch.tensor(record.ids, device=log_p_RV.device).long())
        found.append(token_divergence(log_p, log_q, config.divergence, config.jsd_beta))
    return torch.cat(found)


def _mean_of(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.detach().sum(), torch.tensor(float(values.numel()))


def supervised_objective(
    output: PolicyOutput, batch: TensorBatch, counts: Counts, guidance: AttentionGuidanceConfig | None = None
) -> Objective:
    """Cross-entropy of the response tokens, mean over the update's tokens; with `guidance` its attention term too."""
    nll = -output.log_probs.sum()
    sums = {"supervised/loss": nll.detach(), "supervised/token_accuracy": output.top1.sum().float()}
    loss = nll / counts.tokens
    if guidance is None or output.attention is None:
        return Objective(loss, sums)
    guided, weighted = guide_attention(output.attention, batch, counts, guidance)
    return Objective(loss + guided, sums, weighted)


def guide_attention(
    attention: list[SequenceAttention], batch: TensorBatch, counts: Counts, guidance: AttentionGuidanceConfig
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """AVAR's a · L_enh + b · L_sup, mean over the update's sequences, and the masses that the rows' attention has.

    A sequence none of whose rows sees a picture contributes 0; one without a system turn has no L_sup.
    """
    loss = torch.zeros((), device=batch.input_ids.device)
    masses = {"image": [0.0, 0.0], "system": [0.0, 0.0]}
    for rows, keys in zip(attention, batch.keys.split(batch.lengths), strict=True):
        if not len(rows.rows):
            continue
        seen_T = torch.arange(len(keys.kind), device=rows.rows.device) <= rows.rows.max()
        image_T = ((keys.kind == KeyKind.IMAGE) | (keys.kind == KeyKind.VIDEO)) & seen_T
        system_T = (keys.kind == KeyKind.SYSTEM) & seen_T
        if not image_T.any():
            continue
        masks = {"image": image_T} | ({"system": system_T} if system_T.any() else {})
        by_layer = [log_mean_attention(layer, rows.rows, *masks.values()) for layer in rows.layers]
        logs = {name: torch.stack(of) for name, of in zip(masks, zip(*by_layer, strict=True), strict=True)}
        term = attention_guidance(logs["image"], logs.get("system"), image=guidance.image, system=guidance.system)
        loss = loss + term / counts.sequences
        for name, log_mean_LH in logs.items():
            masses[name][0] += float(log_mean_LH.detach().exp().mean()) * int(masks[name].sum())
            masses[name][1] += 1
    metrics = {f"supervised/{name}_attention": (torch.tensor(m), torch.tensor(n)) for name, (m, n) in masses.items()}
    return loss, metrics


def stack_log_probs(samples: MicroBatch, scores: Scores, mask_BR: Tensor) -> Tensor:
    """Frozen log-probs as a padded tensor [B, R] like `mask`; 0 where padded."""
    return _scatter(np.concatenate([scores[s.id].log_probs for s in samples]), mask_BR)


def stack_rollout_log_probs(samples: MicroBatch, mask_BR: Tensor) -> Tensor:
    """What the rollout engine reported, as a padded tensor [B, R]; 0 where padded."""
    return _scatter(np.concatenate([np.asarray(s.rollout_log_probs, dtype=np.float32) for s in samples]), mask_BR)


def _scatter(flat_N: np.ndarray, mask_BR: Tensor) -> Tensor:
    padded = torch.zeros(mask_BR.shape, dtype=torch.float32, device=mask_BR.device)
    return padded.masked_scatter(mask_BR, torch.tensor(flat_N, device=mask_BR.device))


def stack_divergence(
    attention: list[SequenceAttention], samples: MicroBatch, anchor: Scores, kind: Divergence
) -> tuple[Tensor, Tensor]:
    """Divergence of every attention row to the anchor's, padded to [B, R], and bool [B, R]: which are rows.

    Raises ValueError that names the sample, for a record of other weights than its rollout's or of another shape.
    """
    found = []
    for rows, sample in zip(attention, samples, strict=True):
        records = anchor[sample.id].attention
        assert records, f"sample {sample.id} has no attention record"
        try:
            found.append(rows.divergence(records, kind, sample.weight_version))
        except ValueError as error:
            raise ValueError(f"sample {sample.id}: {error}") from error
    lengths_B = torch.tensor([len(d) for d in found], device=found[0].device)
    divergence_BR = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
    return divergence_BR, torch.arange(divergence_BR.shape[1], device=lengths_B.device) < lengths_B[:, None]


def statistics_by_sign(samples: MicroBatch, behaviour: Scores) -> dict[str, tuple[Tensor, Tensor]]:
    """Sums over the old policy's attention rows and numbers of rows: of all, of samples with A > 0, and with A < 0."""
    totals = {f"attention/{name}{suffix}": torch.zeros(2) for name in STATISTICS for suffix in _SIGNS}
    for sample in samples:
        for name, row in behaviour[sample.id].row_statistics.items():
            for suffix, belongs in _SIGNS.items():
                if belongs(sample.advantage):
                    totals[f"attention/{name}{suffix}"] += torch.tensor([float(row.sum()), float(len(row))])
    return {name: (total[0], total[1]) for name, total in totals.items()}


def divergence_by_sign(divergence_BR: Tensor, rows_BR: Tensor, samples: MicroBatch) -> dict[str, tuple[Tensor, Tensor]]:
    """The same of this update's divergences."""
    found = {}
    for suffix, belongs in _SIGNS.items():
        selected_B = torch.tensor([belongs(s.advantage) for s in samples], device=rows_BR.device)
        chosen_BR = rows_BR & selected_B[:, None]
        found[f"attention/divergence{suffix}"] = (divergence_BR.detach()[chosen_BR].sum(), chosen_BR.sum().float())
    return found
