"""VGPO's factors on the advantages of a rollout batch, from how alike its tokens are to its pictures."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import torch

from ral_system.algorithms.visual_similarity import response_factors, response_score, token_factors, visual_weights
from ral_system.config.perception import VgpoConfig
from ral_system.training.shards import Shards
from ral_system.types import Sample, Scores, TrainPlan


def with_visual_factors(plan: TrainPlan, shards: Shards, scores: Scores, settings: VgpoConfig) -> Scores:
    """Compare the tokens of every update, and the responses of every group, whichever ranks have them.

    Each rank has the scores of its own samples, and all call it together. Responses to text alone keep factor 1.
    """
    of_updates = [
        [s for shard in update.shards for samples in shard for s in samples if s.prompt.media]
        for update in plan.updates
    ]
    everyone = [sample for of_update in of_updates for sample in of_update]
    if not everyone:
        return scores
    extremes = _of_all(everyone, shards, {s.id: _extremes(scores, s) for s in everyone if s.id in scores}, width=2)
    weights: dict[str, np.ndarray] = {}
    for of_update in of_updates:
        lowest = min((extremes[s.id][0] for s in of_update), default=0.0)
        highest = max((extremes[s.id][1] for s in of_update), default=0.0)
        for sample in of_update:
            if sample.id in scores:
                weights[sample.id] = visual_weights(_similarity(scores, sample), lowest, highest, settings)
    own = {id: np.array([response_score(of_tokens, settings)]) for id, of_tokens in weights.items()}
    found = _of_all(everyone, shards, own, width=1)
    groups: dict[str, list[str]] = defaultdict(list)
    for sample in everyone:
        groups[sample.prompt.id].append(sample.id)
    factors: dict[str, float] = {}
    for ids in groups.values():
        of_group = response_factors([found[id][0] for id in ids], settings)
        factors |= dict(zip(ids, of_group.tolist(), strict=True))
    return scores | {
        id: replace(
            scores[id],
            advantage_factor=factors[id],
            token_factors=token_factors(of_tokens, settings).astype(np.float32),
        )
        for id, of_tokens in weights.items()
    }


def _similarity(scores: Scores, sample: Sample) -> np.ndarray:
    found = scores[sample.id].visual_similarity
    assert found is not None, f"sample {sample.id} has media, and was scored without its similarity to them"
    return found.astype(np.float64)


def _extremes(scores: Scores, sample: Sample) -> np.ndarray:
    found = _similarity(scores, sample)
    return np.array([found.min(), found.max()])


def _of_all(samples: list[Sample], shards: Shards, own: dict[str, np.ndarray], width: int) -> dict[str, np.ndarray]:
    """Figures of all samples, from those that this rank has of its own."""
    nothing = np.zeros(width)
    table = np.stack([own.get(sample.id, nothing) for sample in samples])
    whole = shards.sum(torch.from_numpy(table)).cpu().numpy()
    return {sample.id: row for sample, row in zip(samples, whole, strict=True)}
