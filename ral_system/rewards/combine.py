"""One completion's verdict: the parts, and their weighted sum."""

from __future__ import annotations

from dataclasses import dataclass

from ral_system.config.choices import ResponseFormat
from ral_system.config.reward import RewardConfig
from ral_system.rewards.format import extract_answer, format_score
from ral_system.rewards.verifiers.registry import verifier_of


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of a verifier.

    Example: `Verdict(parts={"correctness": 1.0, "format": 0.0}, total=0.9)`
    """

    parts: dict[str, float]
    """Parts of the reward, unweighted, each in [0, 1]."""
    total: float


def judge(config: RewardConfig, response_format: ResponseFormat, text: str, answer: str) -> Verdict:
    """r = correctness weight · verifier's score + format weight · template match (papers 1.7: 0.9 and 0.1).

    A response without an answer, or with several, has a correctness of 0 whatever the verifier.
    """
    given = extract_answer(text)
    correctness = 0.0 if given is None else verifier_of(config)(given, answer, config)
    parts = {"correctness": correctness, "format": format_score(text, response_format)}
    return Verdict(parts, config.correctness * parts["correctness"] + config.format * parts["format"])
