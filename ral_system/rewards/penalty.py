"""What is taken off a reward."""

from __future__ import annotations

from dataclasses import replace

from ral_system.types import RewardResult, RewardStatus


def with_kl_penalty(verdict: RewardResult, penalty: float) -> RewardResult:
    """The verdict less the response's weighted KL to the reference; as it was where none was reached."""
    if penalty == 0 or verdict.status is not RewardStatus.OK:
        return verdict
    return replace(verdict, total=verdict.total - penalty)
