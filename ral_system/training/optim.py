"""The optimiser settings of a stage, and its learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass

from ral_system.config.learner import LearnerConfig
from ral_system.config.supervised import SupervisedConfig


@dataclass(frozen=True, slots=True)
class OptimSettings:
    """AdamW with linear warm-up to a constant rate.

    Example: `OptimSettings(1e-3, betas=(0.9, 0.99), weight_decay=0.0, max_grad_norm=1.0, warmup_updates=20)`
    """

    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    max_grad_norm: float
    warmup_updates: int

    def rate(self, update: int) -> float:
        """Return the learning rate of the `update`-th optimiser update, counted from 0."""
        return self.learning_rate * min(1.0, (update + 1) / max(1, self.warmup_updates))


def optim_settings(learner: LearnerConfig, supervised: SupervisedConfig | None) -> OptimSettings:
    """Return the settings of a supervised stage, or the learner's own, for rl."""
    source = supervised or learner
    return OptimSettings(
        learning_rate=source.learning_rate,
        betas=source.betas,
        weight_decay=source.weight_decay,
        max_grad_norm=learner.max_grad_norm,
        warmup_updates=source.warmup_updates,
    )
