"""Advantages: how much better a completion is than its group.

Everywhere: a completion without a verdict (timeout, error) is left out of every mean and deviation and gets 0; so does
a group with fewer than two verdicts, or whose rewards are all alike: exactly 0, whatever the kind. Deviations are those
of the population; libraries that divide by n - 1 give 0.94 times these numbers for groups of 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ral_system.config.algorithm import Advantage
from ral_system.types import RewardResult, RewardStatus

EPSILON = 1e-6

Values = Sequence[float | None]
"""Rewards of one group's completions; None without a verdict."""


def group_advantages(
    kind: Advantage, groups: Sequence[Sequence[RewardResult]], weights: Mapping[str, float]
) -> list[list[float]]:
    """The advantage of every completion of a rollout batch, group by group.

    grpo: (r - mean) / (std + 1e-6) of its group (arXiv 2402.03300). dr_grpo: r - mean (2503.20783). rloo: r - mean of
    the others (2402.14740). reinforce_plus_plus: r - mean, then normalised over the batch (REINFORCE++ with baseline,
    2501.03262). gdpo: each reward part normalised in its group, summed with `weights`, then normalised over the batch
    (2601.05242), so a part that hardly varies counts as much as its weight says.
    """
    totals = [[_known(r, r.total) for r in group] for group in groups]
    if kind == "grpo":
        return [_filled(normalised(group)) for group in totals]
    if kind == "dr_grpo":
        return [_filled(centred(group)) for group in totals]
    if kind == "rloo":
        return [_filled(against_the_others(group)) for group in totals]
    if kind == "reinforce_plus_plus":
        return over_the_batch([centred(group) for group in totals])
    by_part = [
        [(weight, normalised([_known(r, r.parts.get(name)) for r in group])) for name, weight in weights.items()]
        for group in groups
    ]
    return over_the_batch([_weighted_sum(parts) for parts in by_part])


def normalised(group: Values) -> list[float | None]:
    """(r - mean) / (std + 1e-6); 0 where all are alike."""
    std = _std([r for r in group if r is not None])
    return [None if r is None else r / (std + EPSILON) for r in centred(group)]


def centred(group: Values) -> list[float | None]:
    """r - mean; exactly 0 where all are alike, which the rounding of their mean would not give."""
    known = [r for r in group if r is not None]
    if not differ(known):
        return [None if r is None else 0.0 for r in group]
    mean = sum(known) / len(known)
    return [None if r is None else r - mean for r in group]


def against_the_others(group: Values) -> list[float | None]:
    """r - mean of the group's others; 0 where there are none."""
    count = sum(r is not None for r in group)
    return [None if r is None else 0.0 if count < 2 else r * count / (count - 1) for r in centred(group)]


def over_the_batch(groups: Sequence[Values]) -> list[list[float]]:
    """a / (std + 1e-6) of centred groups, over all of them together, whose mean is 0 already."""
    std = _std([a for group in groups for a in group if a is not None])
    return [[0.0 if a is None else a / (std + EPSILON) for a in group] for group in groups]


def differ(rewards: Sequence[float]) -> bool:
    """Return whether a group's rewards have a signal: the largest and the smallest are more than 1e-6 apart."""
    return len(rewards) > 1 and max(rewards) - min(rewards) > EPSILON


def _known(result: RewardResult, value: float | None) -> float | None:
    return value if result.status is RewardStatus.OK else None


def _weighted_sum(parts: Sequence[tuple[float, Values]]) -> list[float | None]:
    """Sum the parts of each completion of a group. A missing part adds nothing; without any part the sum is None."""
    found: list[float | None] = []
    for of_completion in zip(*(values for _, values in parts), strict=True):
        known = [weight * value for (weight, _), value in zip(parts, of_completion, strict=True) if value is not None]
        found.append(sum(known) if known else None)
    return found


def _std(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5


def _filled(group: Values) -> list[float]:
    return [0.0 if a is None else a for a in group]
