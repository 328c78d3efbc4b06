"""A teacher behind Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ray

from ral_system.actors.process import ActorProcess, watched
from ral_system.config.algorithm import AlgorithmConfig
from ral_system.config.teacher import TeacherConfig, TeacherRole
from ral_system.media.store import node_store
from ral_system.types import Sample, Scores


class TeacherActor(ActorProcess):
    """Owns one `TeacherScorer`."""

    @watched
    def build(
        self,
        algorithm: AlgorithmConfig,
        teacher: TeacherConfig,
        role: TeacherRole,
        model_folder: Path,
        student_folder: Path,
        media_folder: Path,
        *,
        temperature: float,
        media_cache_gib: float,
    ) -> None:
        """Load the model."""
        from ral_system.scoring.teacher import TeacherScorer

        media = node_store(media_folder, media_cache_gib)
        self._scorer = TeacherScorer(
            algorithm, teacher, role, model_folder, student_folder, media, temperature=temperature
        )

    @watched
    def score(self, samples: Sequence[Sample]) -> None:
        """Score the samples, and hold the scores."""
        self._scorer.score(samples)

    @watched
    @ray.method(num_returns=2)
    def take(self, ids: Sequence[str]) -> tuple[int, Scores]:
        """Return the number of samples and their scores: the caller waits for the first and passes on the second."""
        scores = self._scorer.take(ids)
        return len(scores), scores
