"""Distillation terms of one micro-batch: the teachers' token distributions (L_GKD) and attention (L_AD)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ral_system.algorithms.distillation import token_divergence
from ral_system.algorithms.reduction import reduce_rows
from ral_system.algorithms.token_read import TokenValues
from ral_system.attention.group import GroupAttention
from ral_system.config.algorithm import AlgorithmConfig, TokenDistillationConfig
from ral_system.models.policy import PolicyOutput
from ral_system.training.stacking import stack_divergence
from ral_system.types import Counts, MicroBatch, Scores


def distillation(
    output: PolicyOutput,
    rows: Sequence[GroupAttention],
    samples: MicroBatch,
    teaching: Scores,
    algorithm: AlgorithmConfig,
    counts: Counts,
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """mu · L_GKD + gamma_attn · L_AD (Eq 5-7), with the metrics of what is on; exactly 0 where student = teacher."""
    tokens, attention = algorithm.distillation.tokens, algorithm.distillation.attention
    loss, metrics = output.log_probs.new_zeros(()), {}
    if tokens.weight > 0:
        divergence_N = distil_tokens(output.tokens, samples, teaching, tokens)
        loss = loss + tokens.weight * divergence_N.sum() / counts.tokens
        metrics["distillation/token_divergence"] = _mean_of(divergence_N)
    if attention.weight > 0:
        last = [replace(of_group, layers=of_group.layers[-1:]) for of_group in rows]
        divergence_BR, rows_BR = stack_divergence(last, samples, teaching, attention.divergence)
        loss = loss + attention.weight * reduce_rows(
            divergence_BR,
            rows_BR,
            reduction=attention.reduction,
            global_tokens=counts.attention_rows,
            global_sequences=counts.sequences,
        )
        metrics["distillation/attention_divergence"] = _mean_of(divergence_BR[rows_BR])
    if metrics:
        sizes = torch.tensor([float(teaching[s.id].nbytes) for s in samples])
        metrics["distillation/record_bytes"] = _mean_of(sizes)
    return loss, metrics


def distil_tokens(
    values: TokenValues, samples: MicroBatch, teaching: Scores, config: TokenDistillationConfig
) -> Tensor:
    """Divergence of every response token's distribution to the teacher's: [N]."""
    if values.divergence is not None:
        return values.divergence
    records = [record for s in samples if (record := teaching[s.id].tokens) is not None]
    log_p_NK = values.kept["teacher"]
    log_q_NK = torch.cat([torch.tensor(record.log_probs) for record in records]).to(log_p_NK.device)
    return token_divergence(log_p_NK, log_q_NK, config.divergence, config.jsd_beta)


def _mean_of(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.detach().sum(), torch.tensor(float(values.numel()))
