"""Where a model looks while it answers: rows of its own answers at the last layer, heads averaged."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ral_system.attention.metrics import row_statistics
from ral_system.attention.provenance import KeyKind, KeyProvenance
from ral_system.attention.read import AttentionRead
from ral_system.config.choices import Dtype
from ral_system.data.collate import Collator
from ral_system.data.micro_batches import groups_of, micro_batches
from ral_system.evaluation.probed import load_probed
from ral_system.evaluation.saliency import rank_correlation, visual_saliency
from ral_system.media.store import MediaStore
from ral_system.models.policy import PolicyModel
from ral_system.types import MicroBatch

MEANS = ("visual_mass", "sink_mass", "visual_entropy", "evidence_mass", "evidence_area", "pointing")
"""Statistics of rows (`row_statistics`) whose mean over an answer is a figure."""


@dataclass(frozen=True, slots=True)
class Look:
    """Where one answer looked.

    Example, at the second of two visual tokens: `Look({"visual_mass": 0.4, …}, visual=array([0.1, 0.3]))`
    """

    figures: Mapping[str, float]
    """By name, without `looks/`; names that are not defined for this answer are left out."""
    visual: np.ndarray
    """float32 [N]: mean over rows of their attention on each visual token of the prompt, in order."""


def measure_looks(
    model_folder: Path,
    groups: Sequence[MicroBatch],
    media: MediaStore,
    *,
    dtype: Dtype,
    max_tokens: int,
    saliency: Container[str] = (),
) -> dict[str, Look]:
    """Read where answers look, by sample id. A group is the answers to one question with pictures or videos.

    The answers in `saliency` also have `saliency_agreement`, Spearman's correlation over visual tokens of the attention
    on them with `visual_saliency`, in a backward pass each; undefined if either is the same for all tokens. Raises
    ConfigError for a family that cannot be probed.
    """
    policy, device = load_probed(model_folder, dtype)
    collate = Collator(policy.family, media)
    found: dict[str, Look] = {}
    for samples in micro_batches(groups, max_tokens):
        found |= _looks(policy, collate, samples, device)
    policy.requires_grad_(False).train()  # no dropout anywhere; needed for gradient checkpointing
    policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    for sample in (sample for group in groups for sample in group if sample.id in saliency):
        gradient_N = visual_saliency(policy, collate((sample,)).to(device)).cpu().numpy()
        of_answer = found[sample.id]
        if (agreement := rank_correlation(of_answer.visual, gradient_N)) is not None:
            found[sample.id] = replace(of_answer, figures={**of_answer.figures, "saliency_agreement": agreement})
    return found


@torch.no_grad()
def _looks(policy: PolicyModel, collate: Collator, samples: MicroBatch, device: torch.device) -> dict[str, Look]:
    read = AttentionRead()
    tensors, found = collate(samples).to(device), {}
    by_group = zip(
        policy(tensors, [read]).attention[read],
        tensors.keys.split(tensors.packing.lengths),
        groups_of(samples),
        strict=True,
    )
    for rows, keys, group in by_group:
        blocks: dict[int, list[Tensor]] = defaultdict(list)
        for response, block in rows.by_response(rows.policies(-1)):
            blocks[response].append(block)
        for response, sample in enumerate(group):
            found[sample.id] = look(torch.cat(blocks[response]), keys.own(rows.group, response))
    return found


def look(policy_RT: Tensor, keys: KeyProvenance) -> Look:
    """Where an answer looks whose R rows have these policies over the T keys of its sequence.

    Means over rows of `MEANS`. `visual_entropy_share`: the mean of `visual_entropy` as a share of ln N, its largest
    value. `decay`: visual mass of the second half of the rows over that of the first; the middle one of an odd number
    is in neither. With a single visual token there is no share, with a single row or a first half that sees nothing no
    decay.
    """
    by_row = row_statistics(policy_RT, keys)
    figures = {name: float(by_row[name].mean()) for name in MEANS if name in by_row}
    visual_N = policy_RT[:, (keys.kind == KeyKind.IMAGE) | (keys.kind == KeyKind.VIDEO)].mean(0)
    if len(visual_N) > 1:
        figures["visual_entropy_share"] = figures["visual_entropy"] / math.log(len(visual_N))
    half = len(policy_RT) // 2
    if half and (first := float(by_row["visual_mass"][:half].mean())) > 0:
        figures["decay"] = float(by_row["visual_mass"][-half:].mean()) / first
    return Look(figures, visual_N.float().cpu().numpy())


def summary(looks: Mapping[str, Look], scores: Mapping[str, float]) -> dict[str, float]:
    """Mean of each figure over the answers that define it, `looks/<name>`.

    `evidence_mass` and `pointing` also by outcome, `_right` and `_wrong`: means with the answers' scores in [0, 1], and
    with one minus these, as weights; left out where the weights are all 0.
    """
    found = {}
    for name in dict.fromkeys(name for of_answer in looks.values() for name in of_answer.figures):
        with_it = {id: of_answer.figures[name] for id, of_answer in looks.items() if name in of_answer.figures}
        right = np.array([scores[id] for id in with_it])
        weights = {"": np.ones(len(with_it))}
        if name in ("evidence_mass", "pointing"):
            weights |= {"_right": right, "_wrong": 1 - right}
        for suffix, weight in weights.items():
            if weight.sum() > 0:
                found[f"looks/{name}{suffix}"] = float(np.average(list(with_it.values()), weights=weight))
    return found
