"""Text read from a picture, by its word error rate (Video-R1's OCR reward)."""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

from ral_system.config.reward import JudgeConfig


def score(given: str, reference: str, config: JudgeConfig) -> float:
    """1 - word error rate, at least 0: insertions, deletions and substitutions over the reference's words."""
    expected = reference.split()
    if not expected:
        raise ValueError("the reference answer has no words")
    return max(0.0, 1.0 - Levenshtein.distance(expected, given.split()) / len(expected))
