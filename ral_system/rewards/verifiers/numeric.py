"""A number within a tolerance."""

from __future__ import annotations

from ral_system.config.schema import RewardConfig
from ral_system.rewards.verifiers.numbers import read_number, reference_number


def score(given: str, reference: str, config: RewardConfig) -> float:
    """1 where |x - y| ≤ absolute + relative · |y|, else 0."""
    y, x = reference_number(reference), read_number(given)
    return float(x is not None and abs(x - y) <= config.tolerance.absolute + config.tolerance.relative * abs(y))
