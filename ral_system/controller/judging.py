"""From verdicts to advantages: rewards with scores and length penalties, compared within each group."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ral_system.algorithms.advantages import group_advantages
from ral_system.config.algorithm import AlgorithmConfig
from ral_system.controller.sampling import Group
from ral_system.rewards.total import Rewards
from ral_system.types import RewardStatus, Rollout, Verdict


def judge(
    algorithm: AlgorithmConfig,
    rewards: Rewards,
    groups: Sequence[Group],
    verdicts: Mapping[str, Verdict],
    looks: Mapping[str, float],
    kl: Mapping[str, float],
) -> list[Rollout]:
    """Every completion with its whole reward and its advantage.

    `looks` are the visual rewards and `kl` the divergences to the reference that enter it, by sample id, where they do.
    """
    results = [
        [rewards.of(prompt, c, verdicts[c.id], visual=looks.get(c.id), kl=kl.get(c.id)) for c in group]
        for prompt, group in groups
    ]
    advantages = group_advantages(algorithm.advantage, results, rewards.weights)
    rollouts = [
        Rollout(prompt, completion, result, advantage)
        for (prompt, group), of_group in zip(groups, zip(results, advantages, strict=True), strict=True)
        for completion, result, advantage in zip(group, *of_group, strict=True)
    ]
    if algorithm.overlong.handling == "mask":
        return [replace(r, advantage=0.0) if r.completion.was_cut else r for r in rollouts]
    return rollouts


NO_VERDICT = (RewardStatus.TIMEOUT, RewardStatus.ERROR)
"""Completions without a verdict: kept out of the advantage, and counted."""


def missing_verdicts(rollouts: Sequence[Rollout]) -> str | None:
    """Say why, if half of the responses or more have no verdict; None otherwise."""
    missing = [r.reward for r in rollouts if r.reward.status in NO_VERDICT]
    if 2 * len(missing) < max(1, len(rollouts)):
        return None
    share = len(missing) / len(rollouts)
    return f"the share of responses without a verdict is {share:.0%}; of the first: {missing[0].detail}"


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Compute means over the batch: reward parts and total over completed verdicts, lengths, groups without signal."""
    judged = [r.reward for r in rollouts if r.reward.status is RewardStatus.OK]
    parts: dict[str, list[float]] = defaultdict(list)
    for reward in judged:
        for name, value in reward.parts.items():
            parts[name].append(value)
    lengths = [len(r.completion.token_ids) for r in rollouts]
    groups: dict[str, set[float]] = defaultdict(set)
    for rollout in rollouts:
        groups[rollout.prompt.id].add(rollout.advantage)
    return {
        **{f"reward/{name}": sum(values) / len(values) for name, values in sorted(parts.items())},
        "reward/total": sum(r.total for r in judged) / max(1, len(judged)),
        **{f"reward/{s}s": float(sum(r.reward.status is s for r in rollouts)) for s in NO_VERDICT},
        "rollout/length_mean": sum(lengths) / len(lengths),
        "rollout/length_max": float(max(lengths)),
        "rollout/repetition": sum(repetition(r.completion.token_ids) for r in rollouts) / len(rollouts),
        "rollout/truncated": sum(r.completion.was_cut for r in rollouts) / len(rollouts),
        "rollout/tokens": float(sum(lengths)),
        "rollout/first_token_s": sum(r.completion.first_token_s for r in rollouts) / len(rollouts),
        "rollout/groups_without_signal": sum(a == {0.0} for a in groups.values()) / len(groups),
    }


def repetition(token_ids: Sequence[int], size: int = 4) -> float:
    """Return the share of a response's runs of `size` tokens that occurred before; 0 if nothing repeats."""
    runs = Counter(tuple(token_ids[i : i + size]) for i in range(len(token_ids) - size + 1))
    total = runs.total()
    return (total - len(runs)) / total if total else 0.0
