"""Where a model looks while it answers: rows of its own answers at every layer, heads averaged."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ral_system.attention.group import GroupAttention
from ral_system.attention.metrics import decay, row_statistics
from ral_system.attention.provenance import KeyKind, KeyProvenance
from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import Collator
from ral_system.batches.micro_batches import groups_of, micro_batches
from ral_system.config.choices import Dtype
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

    Example of a model of one layer, at the second of two visual tokens:
    `Look(({"visual_mass": 0.4, …},), visual=array([0.1, 0.3]))`
    """

    layers: tuple[Mapping[str, float], ...]
    """Figures of each layer by name, without `looks/`; names that are not defined for this answer are left out."""
    visual: np.ndarray
    """float32 [N]: mean over rows of the last layer's attention on each visual token of the prompt, in order."""

    @property
    def figures(self) -> Mapping[str, float]:
        """Figures of the last layer."""
        return self.layers[-1]


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
            last = {**of_answer.figures, "saliency_agreement": agreement}
            found[sample.id] = replace(of_answer, layers=(*of_answer.layers[:-1], last))
    return found


@torch.no_grad()
def _looks(policy: PolicyModel, collate: Collator, samples: MicroBatch, device: torch.device) -> dict[str, Look]:
    read = AttentionRead(layers="all")
    tensors, found = collate(samples).to(device), {}
    by_group = zip(
        policy(tensors, [read]).attention[read],
        tensors.keys.split(tensors.packing.lengths),
        groups_of(samples),
        strict=True,
    )
    for rows, keys, group in by_group:
        own = [keys.own(rows.group, response) for response in range(len(group))]
        figures: list[list[dict[str, float]]] = [[] for _ in group]
        for layer in range(len(rows.layers)):  # one at a time: the policies of all take much memory
            policies = _by_response(rows, layer)
            for response, of_response in enumerate(figures):
                of_response.append(figures_of(policies[response], own[response]))
        for response, sample in enumerate(group):
            found[sample.id] = Look(tuple(figures[response]), on_visual(policies[response], own[response]))
    return found


def _by_response(rows: GroupAttention, layer: int) -> dict[int, Tensor]:
    """One layer's policies [R, T] of every response, by index."""
    blocks: dict[int, list[Tensor]] = defaultdict(list)
    for response, block in rows.by_response(rows.policies(layer)):
        blocks[response].append(block)
    return {response: torch.cat(of) for response, of in blocks.items()}


def on_visual(policy_RT: Tensor, keys: KeyProvenance) -> np.ndarray:
    """Mean over rows of their attention on each visual token, float32 [N]."""
    visual_N = policy_RT[:, (keys.kind == KeyKind.IMAGE) | (keys.kind == KeyKind.VIDEO)].mean(0)
    return visual_N.float().cpu().numpy()


def figures_of(policy_RT: Tensor, keys: KeyProvenance) -> dict[str, float]:
    """Figures of one layer, from its R rows' policies over the T keys of their sequence.

    Means over rows of `MEANS`. `visual_entropy_share`: the mean of `visual_entropy` as a share of ln N, its largest
    value. `decay` as `attention.metrics.decay`. With a single visual token there is no share.
    """
    by_row = row_statistics(policy_RT, keys)
    figures = {name: float(by_row[name].mean()) for name in MEANS if name in by_row}
    if (visual := int(((keys.kind == KeyKind.IMAGE) | (keys.kind == KeyKind.VIDEO)).sum())) > 1:
        figures["visual_entropy_share"] = figures["visual_entropy"] / math.log(visual)
    if (falls := decay(by_row["visual_mass"].cpu().numpy())) is not None:
        figures["decay"] = falls
    return figures


def summary(scored: Sequence[tuple[Look, float]]) -> dict[str, float]:
    """Mean of each figure of the last layer over the answers that define it, `looks/<name>`. Answers have their scores.

    `evidence_mass` and `pointing` also by outcome, `_right` and `_wrong`: means with the answers' scores in [0, 1], and
    with one minus these, as weights; left out where the weights are all 0.
    """
    found = {}
    for name in dict.fromkeys(name for of_answer, _ in scored for name in of_answer.figures):
        with_it = [(of_answer.figures[name], score) for of_answer, score in scored if name in of_answer.figures]
        values, right = np.array(with_it).T
        weights = {"": np.ones(len(values))}
        if name in ("evidence_mass", "pointing"):
            weights |= {"_right": right, "_wrong": 1 - right}
        for suffix, weight in weights.items():
            if weight.sum() > 0:
                found[f"looks/{name}{suffix}"] = float(np.average(values, weights=weight))
    return found


def by_layer(looks: Sequence[Look]) -> dict[str, list[float]]:
    """Mean of each figure over the answers that define it, layer by layer; left out where some layer has none."""
    found = {}
    for name in dict.fromkeys(name for of_answer in looks for name in of_answer.layers[0]):
        of_layers = zip(*(of_answer.layers for of_answer in looks), strict=True)
        values = [[figures[name] for figures in of_layer if name in figures] for of_layer in of_layers]
        if all(values):
            found[name] = [float(np.mean(of_layer)) for of_layer in values]
    return found
