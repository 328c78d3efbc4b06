"""A frozen model that scores rollouts: the reference policy."""

from __future__ import annotations

from pathlib import Path

import torch

from ral_system.config.schema import RunConfig
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_processor
from ral_system.scoring.build import build_collator, build_policy
from ral_system.scoring.scores import to_scores
from ral_system.types import MicroBatch, Scores


class FrozenScorer:
    """Token log-probs of a frozen model under the rollout's sampling distribution."""

    def __init__(self, config: RunConfig, model_folder: Path, media: MediaStore) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._config = config
        self._policy = build_policy(config, model_folder, self._device).to(self._device).eval().requires_grad_(False)
        self._collate = build_collator(config, load_processor(model_folder), media)

    @torch.no_grad()
    def score(self, micro_batches: tuple[MicroBatch, ...]) -> Scores:
        """Log-probs of every sample's response tokens; with anchor=reference also its attention rows, with
        reward.visual.model=reference also how much it looks at pictures.
        """
        anchors = self._config.algorithm.attention.anchor == "reference"
        looks = self._config.visual_reward_by("reference")
        scores: Scores = {}
        for samples in micro_batches:
            batch = self._collate(samples).to(self._device)
            output = self._policy(batch, with_attention=anchors, with_response_attention=looks)
            scores |= to_scores(output, batch, samples, self._config)
        return scores
