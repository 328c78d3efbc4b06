"""A number, scored by its relative error (Video-R1's regression reward)."""

from __future__ import annotations

from ral_system.config.reward import JudgeConfig
from ral_system.rewards.verifiers.numbers import compared

_EPSILON = 1e-9


def score(given: str, reference: str, config: JudgeConfig) -> float:
    """1 - relative error, at least 0; a reference of 0 asks for exactly 0, another unit scores 0."""
    errors = [abs(x - y) / max(abs(y), _EPSILON) for x, y in compared(given, reference)]
    return 1.0 - min([1.0, *errors])
