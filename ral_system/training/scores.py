"""The scores that an update's objective compares its samples with."""

from __future__ import annotations

from dataclasses import dataclass

from ral_system.types import Scores


@dataclass(frozen=True, slots=True)
class UpdateScores:
    """Scores of an update's samples, by the policies that they come from."""

    old: Scores
    """The old policy's log-probs and what its rows look at, made by the learner at the rollout's weights."""
    reference: Scores | None
    """The frozen reference's; None where nothing is compared with it."""
    anchor: Scores
    """Records that attention is compared with; the paper: the old policy's."""
    teaching: Scores
    """The teachers'; empty without one."""
