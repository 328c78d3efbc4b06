"""Penalties that are subtracted from a reward."""

from __future__ import annotations

from dataclasses import replace

from ral_system.config.algorithm import OverlongConfig
from ral_system.types import Completion, RewardResult, RewardStatus


def with_penalty(verdict: RewardResult, penalty: float | None) -> RewardResult:
    """Subtract `penalty` from the verdict, as a separate part; unchanged without a verdict, or if `penalty` is None."""
    if penalty is None or verdict.status is not RewardStatus.OK:
        return verdict
    return replace(verdict, parts={**verdict.parts, "penalty": penalty}, total=verdict.total - penalty)


def length_penalty(completion: Completion, config: OverlongConfig, limit: int) -> float | None:
    """Return the penalty for a long response; None if no penalty is configured."""
    if config.handling != "penalty":
        return None
    return overlong_penalty(len(completion.token_ids), limit=limit, buffer=config.buffer)


def overlong_penalty(length: int, *, limit: int, buffer: int) -> float:
    """DAPO's soft over-long punishment (arXiv 2503.14476): 0 up to limit - buffer tokens, then linearly to 1 at
    `limit`; from 0 tokens on where `limit` is below `buffer`.
    """
    buffer = min(buffer, limit)
    return min(1.0, max(0.0, (length - (limit - buffer)) / buffer))
