"""A number within `reward.tolerance`."""

from __future__ import annotations

from ral_system.config.reward import JudgeConfig
from ral_system.rewards.verifiers.numbers import compared


def score(given: str, reference: str, config: JudgeConfig) -> float:
    """1 where |x - y| ≤ absolute + relative · |y| and the units agree, else 0."""
    absolute, relative = config.tolerance.absolute, config.tolerance.relative
    return float(any(abs(x - y) <= absolute + relative * abs(y) for x, y in compared(given, reference)))
