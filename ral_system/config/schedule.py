"""The learning rate schedule of a stage: part of the groups `learner`, `perceive` and `sft`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ral_system.config.base import Fraction, Group


class ScheduleConfig(Group):
    """Learning rate after the warm-up."""

    shape: Literal["constant", "linear", "cosine"]
    """Shape of the schedule. linear and cosine fall until the last optimiser update of the stage, which
    `algorithm.steps` or `max_steps` determines. A stage that `stop_at` ends earlier does not reach `end`. A run
    continued with more steps follows the longer schedule."""
    end: Fraction | None
    """Learning rate at the last update, as a share of that after the warm-up. null for constant."""

    def problems_at(self, path: str) -> Iterator[str]:
        """Refuse an end for a constant rate, and a falling rate that has none."""
        if self.shape == "constant" and self.end is not None:
            yield (
                f"{path}.end={self.end:g} has no effect with {path}.shape=constant; set shape to linear or cosine, or "
                "end to null"
            )
        if self.shape != "constant" and self.end is None:
            yield (
                f"{path}.end=null: {path}.shape={self.shape} needs the share of the learning rate to end at; set end "
                "to 0.1, for example"
            )
