"""Rollouts with given parts, lengths and texts, with the advantages that training would give them."""

from collections.abc import Mapping, Sequence

from ral_system.algorithms.advantages import group_advantages
from ral_system.config.algorithm import Advantage
from ral_system.types import Completion, FinishReason, RewardResult, RewardStatus, Rollout
from tests.unit.controller.fakes import prompt

WEIGHTS = {"correctness": 1.0, "format": 0.1, "style": 0.3}
LENGTHS = (9, 9, 11, 11)
"""Tokens of a group's responses; uncorrelated with right, wrong, right, wrong."""

Parts = Mapping[str, float] | None
"""A response's parts; None without a verdict."""


def group(
    number: int,
    parts: Sequence[Parts],
    *,
    weights: Mapping[str, float] = WEIGHTS,
    lengths: Sequence[int] = LENGTHS,
    texts: Sequence[str] = (),
    cut: int = 0,
    advantage: Advantage = "grpo",
) -> list[Rollout]:
    """One prompt's rollouts; the first `cut` ended at their limit."""
    results = [_result(f"train/{number}#{i}", of, weights) for i, of in enumerate(parts)]
    (advantages,) = group_advantages(advantage, [results], weights)
    lengths = lengths if len(lengths) == len(parts) else [10] * len(parts)
    return [
        Rollout(
            prompt(number),
            Completion(
                f"train/{number}",
                i,
                tuple(range(lengths[i])),
                (-0.5,) * lengths[i],
                texts[i] if texts else f"answer {i}",
                FinishReason.LENGTH if i < cut else FinishReason.STOP,
                0,
            ),
            result,
            advantages[i],
        )
        for i, result in enumerate(results)
    ]


def parts(right: Sequence[float], style: Sequence[float]) -> list[Parts]:
    """Well-formatted responses that are right or wrong, with some style."""
    return [{"correctness": c, "format": 1.0, "style": s} for c, s in zip(right, style, strict=True)]


def _result(id: str, of: Parts, weights: Mapping[str, float]) -> RewardResult:
    if of is None:
        return RewardResult(id, {}, 0.0, RewardStatus.TIMEOUT, "late")
    return RewardResult(id, of, sum(weights[name] * value for name, value in of.items()), RewardStatus.OK)
