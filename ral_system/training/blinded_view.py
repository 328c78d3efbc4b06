"""One more scoring pass of a rollout batch, with parts of its pictures black."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import torch

from ral_system.algorithms.perception import advantage_factors, visual_dependence
from ral_system.batches.collate import Collator
from ral_system.batches.micro_batches import groups_of, micro_batches
from ral_system.config.perception import BlindedGroup, VppoConfig
from ral_system.families.family import Family
from ral_system.media.blinding import BlindedMedia
from ral_system.training.engine import Engine
from ral_system.training.shards import Shards
from ral_system.types import MicroBatch, Sample, SampleScores, Scores, TrainPlan

AtVersion = Callable[[int], AbstractContextManager[None]]
Passes = tuple[MicroBatch, ...]


class BlindedView:
    """Scores samples as a rank's policy sees them with blinded media; samples without media have no such view.

    Masks depend on `seed`, the step, the prompt, and with masks of their own on the responses' places in the group.
    """

    def __init__(
        self, settings: BlindedGroup, engine: Engine, collate: Collator, shards: Shards, max_tokens: int, seed: int
    ) -> None:
        self._settings, self._seed = settings, seed
        self._engine, self._collate, self._shards, self._max_tokens = engine, collate, shards, max_tokens

    def added(self, plan: TrainPlan, scores: Scores, step: int, at: AtVersion) -> Scores:
        """Add the blinded log-probs to this rank's scores, and the advantages that follow. All ranks call it.

        `step` is the version that the batch trains, `at` puts a version's weights in place. Tokens that different
        weights made have their log-probs at these, like those of the whole view.
        """
        by_shard = [plan.rank_samples(shard) for shard in range(self._shards.count)]
        versions = {v for micros in by_shard for samples in micros for s in samples for v in s.weight_versions}
        found = {id: np.zeros_like(s.log_probs) for id, s in scores.items()}
        seen = set()
        for version in sorted(versions):
            passes = blinded_passes(
                by_shard, version, self._settings, self._engine.policy.family, self._max_tokens, f"{self._seed}/{step}"
            )
            with at(version):
                for samples in passes[self._shards.own]:
                    for sample, log_probs in self._log_probs(samples, by_shard[self._shards.own]):
                        made = sample.token_versions() == version
                        found[sample.id][made] = log_probs[made]
                        seen.add(sample.id)
        blinded = {id: replace(s, blinded_log_probs=found[id]) if id in seen else s for id, s in scores.items()}
        if isinstance(self._settings, VppoConfig):
            return with_advantage_factors(plan, self._shards, blinded, self._settings.least_factor)
        return blinded

    @torch.no_grad()
    def _log_probs(self, samples: MicroBatch, shard: Sequence[MicroBatch]) -> list[tuple[Sample, np.ndarray]]:
        """Pass a micro-batch; for an empty one, pass a sample of the shard and drop the result.

        What a frozen encoder saw in the whole media is of no use here.
        """
        batch = self._collate(samples or next(m for m in shard if m)[:1]).to(self._engine.device)
        log_probs_BR = self._engine.forward(batch, (), None).log_probs.float().cpu().numpy()
        return [(s, row[: len(s.response_token_ids)]) for s, row in zip(samples, log_probs_BR, strict=False)]


def blinded_passes(
    by_shard: Sequence[Sequence[MicroBatch]],
    version: int,
    settings: BlindedGroup,
    family: Family,
    max_tokens: int,
    seed: str,
) -> list[Passes]:
    """Micro-batches of blinded samples that `version` made, for each shard; all shards have equally many, some empty.

    Responses whose media have masks of their own have prompts of their own, so less fits into a pass.
    """
    packed = []
    for micros in by_shard:
        samples = [s for micro in micros for s in micro if s.prompt.media and version in s.weight_versions]
        samples.sort(key=lambda s: s.prompt.id)  # a prompt passes once, whatever updates its responses are in
        blind = [blinded_sample(s, settings, family, seed) for s in samples]
        packed.append(micro_batches(groups_of(blind), max_tokens))
    return [tuple(shard) for shard in zip(*zip_longest(*packed, fillvalue=()), strict=True)] or [()] * len(packed)


def blinded_sample(sample: Sample, settings: BlindedGroup, family: Family, seed: str) -> Sample:
    """Replace a sample's media by blinded ones."""
    own = f"/{sample.index}" if settings.masks == "response" else ""
    media = tuple(
        BlindedMedia.of(
            medium,
            family.layout(medium),
            patches_per_token=family.patches_per_token,
            frames_per_view=family.frames_per_view,
            masked=settings.masked,
            seed=f"{seed}/{sample.prompt.id}{own}/{place}",
        )
        for place, medium in enumerate(sample.prompt.media)
    )
    return replace(sample, prompt=replace(sample.prompt, media=media))


def with_advantage_factors(plan: TrainPlan, shards: Shards, scores: Scores, least: float) -> Scores:
    """Compare the responses of every update, whichever ranks have them, by how much they depend on their media.

    Each rank has the scores of its own samples. Responses to text alone are compared with none, and keep factor 1.
    """
    updates = [
        [s.id for shard in update.shards for samples in shard for s in samples if s.prompt.media]
        for update in plan.updates
    ]
    everyone = [id for of_update in updates for id in of_update]
    if not everyone:
        return scores
    own = [_dependence(scores[id]) if id in scores else 0.0 for id in everyone]
    dependence = shards.sum(torch.tensor(own, dtype=torch.float64)).cpu().numpy()
    ends = np.cumsum([len(of_update) for of_update in updates])[:-1]
    factors = np.concatenate([advantage_factors(of_update, least) for of_update in np.split(dependence, ends)])
    by_id = dict(zip(everyone, factors.tolist(), strict=True))
    return {id: replace(s, advantage_factor=by_id.get(id, 1.0)) for id, s in scores.items()}


def _dependence(scores: SampleScores) -> float:
    """Mean over the tokens of a response of how much they depend on its media, at the weights that made it."""
    assert scores.blinded_log_probs is not None, "samples with media have a blinded view"
    old, blinded = torch.from_numpy(scores.log_probs), torch.from_numpy(scores.blinded_log_probs)
    return float(visual_dependence(old.double(), blinded.double()).mean())
