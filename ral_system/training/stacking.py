"""Records of frozen policies, stacked into tensors of a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ral_system.algorithms.attention_objectives.inputs import Evidence, Glances, shares
from ral_system.algorithms.token_read import TokenValues
from ral_system.attention.group import GroupAttention
from ral_system.attention.record import sharpened
from ral_system.attention.selection import shared_keys
from ral_system.batches.collate import TensorBatch
from ral_system.config.attention import AttentionConfig
from ral_system.config.attention_objective import EvidenceObjectiveConfig, SharpeningObjectiveConfig
from ral_system.training.evidence import passes_gate, target_of
from ral_system.types import MicroBatch, Scores


def stack_log_probs(samples: MicroBatch, scores: Scores, mask_BR: Tensor) -> Tensor:
    """Frozen log-probs as a padded tensor [B, R] like `mask`; 0 where padded."""
    return _scatter(np.concatenate([scores[s.id].log_probs for s in samples]), mask_BR)


def stack_rollout_log_probs(samples: MicroBatch, mask_BR: Tensor) -> Tensor:
    """Stack the log-probs that the rollout engine reported into a padded tensor [B, R]; 0 where padded."""
    return _scatter(np.concatenate([np.asarray(s.rollout_log_probs, dtype=np.float32) for s in samples]), mask_BR)


def stack_blinded_log_probs(samples: MicroBatch, behaviour: Scores, mask_BR: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs with the blinded view as a padded tensor [B, R], and bool [B, R]: whose prompts have media.

    Raises ValueError for a sample with media that has no such view.
    """
    found, seen = [], []
    for sample in samples:
        blinded = behaviour[sample.id].blinded_log_probs
        if sample.prompt.media and blinded is None:
            raise ValueError(f"sample {sample.id} has media, and was not scored with a blinded view")
        found.append(np.zeros(len(sample.response_token_ids), np.float32) if blinded is None else blinded)
        seen.append(blinded is not None)
    return _scatter(np.concatenate(found), mask_BR), mask_BR & torch.tensor(seen, device=mask_BR.device)[:, None]


def stack_visual_similarity(samples: MicroBatch, behaviour: Scores, mask_BR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Stack tokens' similarities to pictures and the factors from them, padded to [B, R], and whose prompts have media.

    The last is bool [B, R]. Without media the factors are 1.

    Raises ValueError for a sample with media that has none.
    """
    similarity, factors, seen = [], [], []
    for sample in samples:
        scores = behaviour[sample.id]
        if sample.prompt.media and scores.token_factors is None:
            raise ValueError(f"sample {sample.id} has media, and was scored without its similarity to them")
        nothing = np.zeros(len(sample.response_token_ids), np.float32)
        similarity.append(nothing if scores.visual_similarity is None else scores.visual_similarity)
        factors.append(nothing + 1 if scores.token_factors is None else scores.token_factors)
        seen.append(scores.token_factors is not None)
    similarity_BR, factors_BR = (_scatter(np.concatenate(values), mask_BR) for values in (similarity, factors))
    return similarity_BR, factors_BR, mask_BR & torch.tensor(seen, device=mask_BR.device)[:, None]


def stack_top_tokens(values: TokenValues, samples: MicroBatch, mask_BR: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of the rollout's most likely tokens and of all others together: the policy's and the rollout's.

    [B, R, K + 1] each, constants; 0 where padded.
    """
    rollout_NK = torch.cat([torch.from_numpy(s.rollout_top.log_probs) for s in samples if s.rollout_top is not None])
    policy_NK = values.kept["rollout"].detach()

    def padded(flat_NK: Tensor) -> Tensor:
        found = torch.zeros(*mask_BR.shape, flat_NK.shape[1], device=mask_BR.device)
        found[mask_BR] = flat_NK.to(found)
        return found

    return padded(policy_NK), padded(rollout_NK)


def _scatter(flat_N: np.ndarray, mask_BR: Tensor) -> Tensor:
    padded = torch.zeros(mask_BR.shape, dtype=torch.float32, device=mask_BR.device)
    return padded.masked_scatter(mask_BR, torch.tensor(flat_N, device=mask_BR.device))


def stack_divergence(
    attention: Sequence[GroupAttention], samples: MicroBatch, anchor: Scores, kind: str
) -> tuple[Tensor, Tensor]:
    """Divergence of every attention row to the anchor's, padded to [B, R], and bool [B, R]: which are rows.

    Raises ValueError that names the sample, for a record of other weights than its rollout's or of another shape.
    """
    found, of_groups = [], iter(samples)
    for group in attention:
        records = []
        for response, sample in enumerate(islice(of_groups, len(group.counts))):
            records.append(anchor[sample.id].attention)
            assert records[-1], f"sample {sample.id} has no attention record"
            try:
                group.check(response, records[-1], sample.weight_version)
            except ValueError as error:
                raise ValueError(f"sample {sample.id}: {error}") from error
        found.append(group.divergence(records, kind))
    return _padded_rows(attention, found)


def stack_sharpened(
    attention: Sequence[GroupAttention], samples: MicroBatch, anchor: Scores, settings: SharpeningObjectiveConfig
) -> Tensor:
    """KL(target ‖ row) of every attention row, padded to [B, R]: the anchor's rows are the target, sharpened where the
    sample's advantage is above 0 and flattened elsewhere.
    """
    targets = {}
    for sample in samples:
        power = 1 / settings.temperature if sample.attention_advantage > 0 else settings.temperature
        records = tuple(sharpened(record, power) for record in anchor[sample.id].attention)
        targets[sample.id] = replace(anchor[sample.id], attention=records)
    return stack_divergence(attention, samples, targets, "forward_kl")[0]


def _padded_rows(attention: Sequence[GroupAttention], found: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Figures of the rows of each group, padded to [B, R], and bool [B, R]: which are rows."""
    rows_BR, figures_N = _rows(attention), torch.cat(tuple(found))
    return figures_N.new_zeros(rows_BR.shape).masked_scatter(rows_BR, figures_N), rows_BR


def _rows(attention: Sequence[GroupAttention]) -> Tensor:
    """bool [B, R], which positions are rows of each response."""
    counts_B = torch.tensor([count for group in attention for count in group.counts])
    return (torch.arange(int(counts_B.max())) < counts_B[:, None]).to(attention[0].rows.device)


def stack_glances(
    attention: Sequence[GroupAttention],
    samples: MicroBatch,
    behaviour: Scores,
    batch: TensorBatch,
    settings: AttentionConfig,
) -> tuple[Glances, ...]:
    """Return where each sample looks now, differentiably, with where its group looked at the rollout's weights."""
    found: list[Tensor] = []
    for group, keys in zip(attention, batch.keys.split(batch.packing.lengths), strict=True):
        found += group.glances(shared_keys(settings.glance_keys, keys)).unbind(-2)
    old = old_glances(samples, behaviour)
    if missing := [s.id for s, glances in zip(samples, old, strict=True) if glances is None]:
        raise ValueError(f"sample {missing[0]}: nothing is known of where its group looks")
    return tuple(replace(glances, own=own) for own, glances in zip(found, old, strict=True) if glances is not None)


def stack_evidence(
    attention: Sequence[GroupAttention],
    samples: MicroBatch,
    batch: TensorBatch,
    settings: EvidenceObjectiveConfig,
    update_rows: int,
) -> Evidence:
    """Return rows' distances from their prompt's target, and which samples count: those with a target and a reward that
    passes the gate. Only their rows are computed, 0 stands for the others. `update_rows` is the number of rows of all
    that count in the update.
    """
    found, counted, of_groups = [], [], iter(samples)
    of_keys = batch.keys.split(batch.packing.lengths)
    for group, keys, layouts in zip(attention, of_keys, batch.layouts, strict=True):
        members = tuple(islice(of_groups, len(group.counts)))
        target_N = target_of(members[0].prompt, layouts, settings)
        chosen = [target_N is not None and passes_gate(sample, settings) for sample in members]
        counted += chosen
        if target_N is None or not any(chosen):
            found += [at.query[:0].float().sum((1, 2)) for at in group.layers]  # of nothing, but differentiable
            continue
        target_T = torch.zeros(keys.kind.shape, device=keys.kind.device)
        target_T[shared_keys("visual", keys)] = target_N.to(target_T.device)
        found.append(group.of(chosen).divergence_to(target_T, "reverse_kl"))
    rows_BR = _rows(attention)
    counted_B, figures_N = torch.tensor(counted, device=rows_BR.device), torch.cat(found)
    divergence_BR = figures_N.new_zeros(rows_BR.shape).masked_scatter(rows_BR & counted_B[:, None], figures_N)
    return Evidence(divergence_BR, counted_B, update_rows)


def old_glances(samples: MicroBatch, behaviour: Scores, *, judged: bool = False) -> list[Glances | None]:
    """The glances of each sample at the rollout's weights, on the host; None where the group's are not known.

    With the outcomes that the objective takes, or, `judged`, with those that rewards gave, whatever a control did.
    """
    found: list[Glances | None] = []
    by_prompt: dict[str, Tensor] = {}
    for sample in samples:
        group = behaviour[sample.id].group_glances
        if group is None:
            found.append(None)
            continue
        if sample.prompt.id not in by_prompt:
            by_prompt[sample.prompt.id] = shares(torch.from_numpy(group).double())
        known, credit = by_prompt[sample.prompt.id], sample.credit
        outcomes = (0.0,) * len(group) if credit is None else credit.judged if judged else credit.outcomes
        found.append(Glances(known[sample.index], known, outcomes, sample.index))
    return found
