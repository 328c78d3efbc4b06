"""A frozen scorer behind Ray: the reference policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ray

from ral_system.actors.process import ActorProcess, watched
from ral_system.config.attention import AttentionConfig
from ral_system.config.choices import Dtype
from ral_system.config.reward import VisualRewardConfig
from ral_system.media.store import node_store
from ral_system.types import MicroBatch, Scores


class ScorerActor(ActorProcess):
    """Owns one `FrozenScorer`."""

    @watched
    def build(
        self,
        attention: AttentionConfig,
        visual: VisualRewardConfig,
        model_folder: Path,
        media_folder: Path,
        *,
        dtype: Dtype,
        temperature: float,
        media_cache_gib: float,
    ) -> None:
        """Load the model."""
        from ral_system.scoring.reference import FrozenScorer

        media = node_store(media_folder, media_cache_gib)
        self._scorer = FrozenScorer(attention, visual, model_folder, media, dtype=dtype, temperature=temperature)

    @watched
    @ray.method(num_returns=2)
    def score(self, micro_batches: tuple[MicroBatch, ...]) -> tuple[Mapping[str, float], Scores]:
        """Return the samples' visual rewards and their scores; the caller waits only for the rewards."""
        from ral_system.scoring.scores import visual_rewards

        scores = self._scorer.score(micro_batches)
        return visual_rewards(scores), scores
