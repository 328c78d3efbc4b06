"""The visual-anchored part of a reward (AVAR, arXiv 2603.03825), which comes from scoring and not from a verifier."""

from __future__ import annotations

from dataclasses import replace

from ral_system.config.reward import RewardConfig
from ral_system.types import RewardResult, RewardStatus


def with_visual_reward(config: RewardConfig, verdict: RewardResult, r_vis: float | None) -> RewardResult:
    """The verdict with the visual-anchored part, which only what is correct earns: correctness · r_vis.

    As it was where no verdict was reached, or r_vis is undefined (None).
    """
    if r_vis is None or verdict.status is not RewardStatus.OK:
        return verdict
    part = verdict.parts["correctness"] * r_vis
    return replace(verdict, parts={**verdict.parts, "visual": part}, total=verdict.total + config.visual.weight * part)
