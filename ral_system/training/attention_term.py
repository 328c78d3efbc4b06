"""What trains attention: the term of the objective that reads attention policies, and what they look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from ral_system.attention.group import GroupAttention
from ral_system.attention.metrics import STATISTICS, decay
from ral_system.batches.collate import TensorBatch
from ral_system.batches.micro_batches import groups_of
from ral_system.config.attention import AttentionConfig
from ral_system.config.attention_objective import EvidenceObjectiveConfig, SharpeningObjectiveConfig
from ral_system.training.scores import UpdateScores
from ral_system.training.stacking import (
    old_glances,
    stack_divergence,
    stack_evidence,
    stack_glances,
    stack_sharpened,
)
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
class AttentionTerm:
    """A micro-batch's share of the term, and metrics, as in `Objective`."""

    loss: Tensor | None
    """lambda_attn · L_attn, or L_attn where its share of the gradient is held; differentiable, None without a term."""
    sums: dict[str, Tensor]
    weighted: dict[str, tuple[Tensor, Tensor]]


def attention_term(
    rows: Sequence[GroupAttention],
    batch: TensorBatch,
    samples: MicroBatch,
    counts: Counts,
    scores: UpdateScores,
    settings: AttentionConfig,
) -> AttentionTerm:
    """lambda_attn · L_attn (arXiv 2602.04884, Eq 4) or the configured objective's in its place.

    Divergences from the anchor, statistics of the old policy's rows and the contrast are measured also without a term.
    """
    trained = settings.weight > 0 and settings.objective.trains_divergence
    with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
        divergence_BR, rows_BR = stack_divergence(rows, samples, scores.anchor, settings.divergence)
    weighted = statistics_by_sign(samples, scores.old) | divergence_by_sign(divergence_BR, rows_BR, samples)
    weighted["attention/contrast"] = contrast_of(samples, scores.old)
    if settings.weight == 0:
        return AttentionTerm(None, {}, weighted)
    inputs = AttentionInputs(
        divergence_BR,
        torch.tensor([s.attention_advantage for s in samples], device=rows_BR.device),
        rows_BR,
        stack_glances(rows, samples, scores.old, batch, settings) if settings.objective.reads_glances else (),
        settings.reduction,
        counts.attention_rows,
        counts.sequences,
        evidence_of(rows, samples, batch, settings, counts.evidence_rows),
        stack_sharpened(rows, samples, scores.anchor, settings.objective)
        if isinstance(settings.objective, SharpeningObjectiveConfig)
        else None,
    )
    term = OBJECTIVES[settings.objective.name](inputs, settings.objective)
    if inputs.evidence is not None:
        weighted["attention/evidence_gate"] = (inputs.evidence.counted.sum().float(), torch.tensor(float(len(samples))))
    return AttentionTerm(settings.coefficient * term, {"attention/loss": term.detach() * counts.tokens}, weighted)


def statistics_by_sign(samples: MicroBatch, behaviour: Scores) -> dict[str, tuple[Tensor, Tensor]]:
    """Sums over the old policy's attention rows and numbers of rows: of all, of samples with A > 0, and with A < 0.
    Decay is one figure for each response.
    """
    totals = {f"attention/{name}{suffix}": [0.0, 0] for name in (*STATISTICS, "decay") for suffix in _SIGNS}
    for sample in samples:
        signs = [suffix for suffix, belongs in _SIGNS.items() if belongs(sample.advantage)]
        found = behaviour[sample.id].row_statistics
        parts = {name: (float(row.sum(dtype=np.float64)), len(row)) for name, row in found.items()}
        if "visual_mass" in found and (falls := decay(found["visual_mass"])) is not None:
            parts["decay"] = falls, 1
        for name, (total, count) in parts.items():
            for suffix in signs:
                so_far = totals[f"attention/{name}{suffix}"]
                so_far[0], so_far[1] = so_far[0] + total, so_far[1] + count
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
