"""What is taken off a reward."""

from __future__ import annotations

from dataclasses import replace

from ral_system.types import RewardResult, RewardStatus


def with_penalty(verdict: RewardResult, penalty: float) -> RewardResult:
    """The verdict less `penalty`; as it was where none was reached."""
    if penalty == 0 or verdict.status is not RewardStatus.OK:
        return verdict
    return replace(verdict, total=verdict.total - penalty)


def overlong_penalty(length: int, *, limit: int, buffer: int) -> float:
    """DAPO's soft over-long punishment (arXiv 2503.14476): 0 up to limit - buffer tokens, then linearly to 1 at
    `limit`.
    """
    return min(1.0, max(0.0, (length - (limit - buffer)) / buffer))
