"""A frozen model behind Ray: the reference or a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from ral_system.actors.process import ActorProcess, watched
from ral_system.config.algorithm import AlgorithmConfig
from ral_system.config.attention import AttentionConfig
from ral_system.config.choices import Dtype
from ral_system.config.reward import VisualRewardConfig
from ral_system.config.teacher import TeacherConfig, TeacherRole
from ral_system.heavy_imports import heavy_imports
from ral_system.media.store import node_store
from ral_system.types import Held, Sample, Scores

if TYPE_CHECKING:
    from ral_system.scoring.frozen import FrozenScorer


class ScorerActor(ActorProcess):
    """Owns one `FrozenScorer`."""

    _scorer: FrozenScorer

    @watched
    def build_reference(
        self,
        attention: AttentionConfig,
        visual: VisualRewardConfig,
        model_folder: Path,
        media_folder: Path,
        *,
        dtype: Dtype,
        temperature: float,
        max_tokens: int,
        gpus: int,
        media_cache_gib: float,
    ) -> None:
        """Load the reference onto the first `gpus` GPUs of the actor, if it has any."""
        with heavy_imports():
            from ral_system.scoring.reference import ReferenceScorer

        media = node_store(media_folder, media_cache_gib)
        self._scorer = ReferenceScorer(
            attention,
            visual,
            model_folder,
            media,
            dtype=dtype,
            temperature=temperature,
            max_tokens=max_tokens,
            gpus=gpus,
        )

    @watched
    def build_teacher(
        self,
        algorithm: AlgorithmConfig,
        teacher: TeacherConfig,
        role: TeacherRole,
        model_folder: Path,
        student_folder: Path,
        media_folder: Path,
        *,
        temperature: float,
        gpus: int,
        media_cache_gib: float,
    ) -> None:
        """Load a teacher onto the first `gpus` GPUs of the actor, if it has any."""
        with heavy_imports():
            from ral_system.scoring.teacher import TeacherScorer

        media = node_store(media_folder, media_cache_gib)
        self._scorer = TeacherScorer(
            algorithm, teacher, role, model_folder, student_folder, media, temperature=temperature, gpus=gpus
        )

    @watched
    def score(self, samples: Sequence[Sample]) -> None:
        """Score the samples, and hold the scores."""
        self._scorer.score(samples)

    @watched
    def hold(self, held: Held) -> None:
        """Change how much memory the model holds on the shared device, between two phases."""
        self._scorer.hold(held)

    @watched
    @ray.method(num_returns=2)
    def take(self, ids: Sequence[str]) -> tuple[Mapping[str, float], Scores]:
        """Return the samples' visual rewards and their scores; the caller waits only for the rewards."""
        from ral_system.scoring.scores import visual_rewards

        scores = self._scorer.take(ids)
        return visual_rewards(scores), scores
