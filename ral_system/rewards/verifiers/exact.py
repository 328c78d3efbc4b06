"""The exact words, up to case and whitespace."""

from __future__ import annotations

from ral_system.config.reward import JudgeConfig


def score(given: str, reference: str, config: JudgeConfig) -> float:
    """1 for the same words, else 0."""
    return float(same_words(given, reference))


def same_words(a: str, b: str) -> bool:
    """Return whether two texts are the same up to case and whitespace."""
    return a.casefold().split() == b.casefold().split()
