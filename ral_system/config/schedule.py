"""How a stage's learning rate changes: part of the groups `learner`, `perceive` and `sft`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ral_system.config.base import Fraction, Group


class ScheduleConfig(Group):
    """Learning rate after the warm-up."""

    shape: Literal["constant", "linear", "cosine"]
    """linear and cosine fall until the stage's last optimiser update: that of `algorithm.steps` or `max_steps`. A stage
    that `stop_at` ends earlier stays above `end`, and with more steps a continued run follows the longer schedule."""
    end: Fraction | None
    """Share of the learning rate at the last update; null with constant."""

    def problems_at(self, path: str) -> Iterator[str]:
        """Refuse an end that nothing reads, and a fall without one."""
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
