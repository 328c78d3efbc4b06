"""Advantages: how much better a completion is than its group."""

from __future__ import annotations

from collections.abc import Sequence

EPSILON = 1e-6


def group_normalised(rewards: Sequence[float | None]) -> list[float]:
    """GRPO (arXiv 2402.03300): A_i = (r_i - mean) / (std + 1e-6) over the group's rewards [G].

    `None` marks a completion without a verdict (timeout, error): it is left out of mean and std and gets A = 0. The
    standard deviation is that of the population. Degenerate cases: all rewards equal, or fewer than two verdicts, give
    A = 0 for the whole group.
    """
    known = [r for r in rewards if r is not None]
    if len(known) < 2:
        return [0.0] * len(rewards)
    mean = sum(known) / len(known)
    std = (sum((r - mean) ** 2 for r in known) / len(known)) ** 0.5
    if std < EPSILON:
        return [0.0] * len(rewards)
    return [0.0 if r is None else (r - mean) / (std + EPSILON) for r in rewards]
