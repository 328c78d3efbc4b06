"""A frozen model that scores rollouts: the reference policy."""

from __future__ import annotations

from pathlib import Path

import torch

from ral_system.attention.read import AttentionRead, response_at_all_layers
from ral_system.config.attention import AttentionConfig
from ral_system.config.choices import Dtype
from ral_system.config.reward import VisualRewardConfig
from ral_system.data.collate import Collator
from ral_system.media.store import MediaStore
from ral_system.scoring.build import build_policy
from ral_system.scoring.scores import to_scores
from ral_system.types import MicroBatch, Scores


class FrozenScorer:
    """Token log-probs of a frozen model under the rollout's sampling distribution."""

    def __init__(
        self,
        attention: AttentionConfig,
        visual: VisualRewardConfig,
        model_folder: Path,
        media: MediaStore,
        *,
        dtype: Dtype,
        temperature: float,
    ) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._attention, self._visual = attention, visual
        self._read = AttentionRead.of(attention)
        policy = build_policy(model_folder, self._device, self._read, dtype=dtype, temperature=temperature)
        self._policy = policy.to(self._device).eval().requires_grad_(False)
        self._collate = Collator(policy.family, media)

    @torch.no_grad()
    def score(self, micro_batches: tuple[MicroBatch, ...]) -> Scores:
        """Log-probs of every sample's response tokens; with anchor=reference also its attention rows, with
        reward.visual.model=reference also how much it looks at pictures.
        """
        read = self._read if self._attention.anchor == "reference" else None
        response = response_at_all_layers(self._attention) if self._visual.given_by("reference") else None
        scores: Scores = {}
        for samples in filter(None, micro_batches):
            batch = self._collate(samples).to(self._device)
            output = self._policy(batch, [asked for asked in (read, response) if asked])
            scores |= to_scores(output, batch, samples, self._attention, self._visual, read=read, response=response)
        return scores
