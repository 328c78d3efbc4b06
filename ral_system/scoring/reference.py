"""A frozen model that scores rollouts: the reference policy."""

from __future__ import annotations

from pathlib import Path

import torch

from ral_system.attention.read import AttentionRead, response_at_all_layers
from ral_system.config.run import RunConfig
from ral_system.data.collate import Collator
from ral_system.media.store import MediaStore
from ral_system.scoring.build import build_policy
from ral_system.scoring.scores import to_scores
from ral_system.types import MicroBatch, Scores


class FrozenScorer:
    """Token log-probs of a frozen model under the rollout's sampling distribution."""

    def __init__(self, config: RunConfig, model_folder: Path, media: MediaStore) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._config = config
        self._read = AttentionRead.of(config.algorithm.attention)
        policy = build_policy(config, model_folder, self._device, self._read)
        self._policy = policy.to(self._device).eval().requires_grad_(False)
        self._collate = Collator(policy.family, media)

    @torch.no_grad()
    def score(self, micro_batches: tuple[MicroBatch, ...]) -> Scores:
        """Log-probs of every sample's response tokens; with anchor=reference also its attention rows, with
        reward.visual.model=reference also how much it looks at pictures.
        """
        read = self._read if self._config.algorithm.attention.anchor == "reference" else None
        attention = self._config.algorithm.attention
        response = response_at_all_layers(attention) if self._config.visual_reward_by("reference") else None
        scores: Scores = {}
        for samples in micro_batches:
            batch = self._collate(samples).to(self._device)
            output = self._policy(batch, [asked for asked in (read, response) if asked])
            scores |= to_scores(output, batch, samples, self._config, read=read, response=response)
        return scores
