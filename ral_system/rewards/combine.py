"""One completion's verdict: the parts, and their weighted sum."""

from __future__ import annotations

from dataclasses import dataclass

from ral_system.config.schema import ResponseFormat, RewardConfig
from ral_system.rewards.correctness import exact_match
from ral_system.rewards.format import format_score


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier returns.

    Example: `Verdict(parts={"correctness": 1.0, "format": 0.0}, total=0.9)`
    """

    parts: dict[str, float]
    """Unweighted parts, each in [0, 1]."""
    total: float


def judge(config: RewardConfig, response_format: ResponseFormat, text: str, answer: str) -> Verdict:
    """r = correctness weight · exact match + format weight · template match (papers 1.7: 0.9 and 0.1)."""
    parts = {"correctness": exact_match(text, answer), "format": format_score(text, response_format)}
    return Verdict(parts, config.correctness * parts["correctness"] + config.format * parts["format"])
