"""When nothing is generated ahead: before a checkpoint, an evaluation and the end of the rl stage."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pauses:
    """The pauses of an rl stage of so many steps; 0 for `evaluate_every`: none to evaluate."""

    steps: int
    checkpoint_every: int
    evaluate_every: int
    max_staleness: int

    def steps_until(self, step: int) -> int:
        """Count the steps from this one, included, to the next pause."""
        pauses = (self.checkpoint_every, self.evaluate_every or self.steps, self.steps)
        return 1 + min(-step % every for every in pauses)

    def may_stop(self, step: int) -> bool:
        """Return whether an alarm may end the stage after this step: more are to come, and nothing is under way."""
        paused = self.max_staleness == 0 or self.steps_until(step) == 1
        return paused and step < self.steps
