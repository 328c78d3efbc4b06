"""Figures of a step's rollouts that distinguish a gamed reward from learning. All are numbers, never NaN.

k is a part of the reward with weight w_k; r the total. Auxiliary parts are all but correctness; of them those with a
positive weight are paid. Penalties are not: `overlong` and `kl` grow with length by construction. Groups are a prompt's
rollouts with a verdict, two or more; a part that is undefined for a response adds nothing to its total, and counts as 0
unless said otherwise. Where nothing differs, shares and correlations are 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import pstdev

from ral_system.algorithms.advantages import centred, differ
from ral_system.rewards.format import extract_answer
from ral_system.types import RewardStatus, Rollout

Group = Sequence[Rollout]

CORRECTNESS = "correctness"
SENTENCE_LENGTH = 25
"""Only sentences with more characters count as said twice."""
_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+|[。！？\n]|</?\w+>")


def health(rollouts: Sequence[Rollout], weights: Mapping[str, float]) -> dict[str, float]:
    """Metrics of one step, `health/…`. What needs a verdict, `aux_reward`, is left out of a step without any."""
    groups = judged_groups(rollouts)
    shares = part_shares(groups, weights)
    whole = [uncut for group in groups if len(uncut := [r for r in group if not r.completion.was_cut]) > 1]
    correlations = {part: length_correlation(whole, part) for part in weights}  # a cut response lacks its answer
    paid = paid_parts(weights)
    figures = {
        **{f"health/part_share/{part}": share for part, share in shares.items()},
        "health/aux_share": sum(share for part, share in shares.items() if part != CORRECTNESS),
        "health/aux_only": len(auxiliary_only(groups)) / max(1, len(groups)),
        "health/amplification": amplification(groups),
        **{f"health/length_corr/{part}": correlation for part, correlation in correlations.items()},
        "health/length_corr": max((abs(correlations[part]) for part in paid), default=0.0),
        "health/duplicates": duplicates(rollout.completion.text for rollout in rollouts),
        "health/unclosed": unclosed(rollouts),
    }
    judged = [rollout for rollout in rollouts if rollout.reward.status is RewardStatus.OK]
    if judged:
        pay = sum(weights[part] * _value(rollout, part) for rollout in judged for part in paid)
        figures["health/aux_reward"] = pay / len(judged)
    return figures


def paid_parts(weights: Mapping[str, float]) -> list[str]:
    """Auxiliary parts that add to the reward."""
    return [part for part, weight in weights.items() if part != CORRECTNESS and weight > 0]


def judged_groups(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    """Rollouts with a verdict by prompt, without prompts that have only one."""
    by_prompt: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        if rollout.reward.status is RewardStatus.OK:
            by_prompt.setdefault(rollout.prompt.id, []).append(rollout)
    return [group for group in by_prompt.values() if len(group) > 1]


def part_shares(groups: Sequence[Group], weights: Mapping[str, float]) -> dict[str, float]:
    """Share of every part in the spread of rewards: the mean over groups of Cov(w_k r^k, r) / Var(r).

    Only groups whose totals differ count. The shares add up to 1 if there is one, and are all 0 otherwise; a share is
    negative where a part works against the others.
    """
    differing = [group for group in groups if differ(_totals(group))]
    found = dict.fromkeys(weights, 0.0)
    for group in differing:
        totals = _centred(_totals(group))
        spread = sum(total * total for total in totals)
        for part, weight in weights.items():
            values = _centred([weight * _value(rollout, part) for rollout in group])
            covariance = sum(value * total for value, total in zip(values, totals, strict=True))
            found[part] += covariance / spread / len(differing)
    return found


def auxiliary_only(groups: Sequence[Group]) -> list[Group]:
    """Groups whose totals differ although their correctness does not."""
    return [
        group
        for group in groups
        if differ(_totals(group)) and not differ([_value(rollout, CORRECTNESS) for rollout in group])
    ]


def amplification(groups: Sequence[Group]) -> float:
    """The 95 % quantile over auxiliary-only groups of std(advantage) / std(reward); 0 without such a group.

    It is 1 / std(reward) where advantages are divided by the group's deviation, and 1 for r - mean. The quantile is the
    smallest ratio that at least 95 % of the groups do not exceed.
    """
    ratios = sorted(
        pstdev([rollout.advantage for rollout in group]) / pstdev(_totals(group)) for group in auxiliary_only(groups)
    )
    return ratios[math.ceil(0.95 * len(ratios)) - 1] if ratios else 0.0


def length_correlation(groups: Sequence[Group], part: str) -> float:
    """Pearson's correlation of a part with the response's tokens, both centred in their group, over all groups.

    Responses for which the part is undefined are left out.
    """
    products = values_squared = lengths_squared = 0.0
    for group in groups:
        defined = [rollout for rollout in group if part in rollout.reward.parts]
        values = _centred([rollout.reward.parts[part] for rollout in defined])
        lengths = _centred([float(len(rollout.completion.token_ids)) for rollout in defined])
        products += sum(value * length for value, length in zip(values, lengths, strict=True))
        values_squared += sum(value * value for value in values)
        lengths_squared += sum(length * length for length in lengths)
    spread = math.sqrt(values_squared) * math.sqrt(lengths_squared)
    return products / spread if spread > 0 else 0.0


def duplicates(texts: Iterable[str]) -> float:
    """Share of sentences longer than 25 characters that their own response has said before; 0 without any."""
    said = distinct = 0
    for text in texts:
        sentences = [" ".join(part.split()) for part in _BETWEEN_SENTENCES.split(text)]
        long = [sentence for sentence in sentences if len(sentence) > SENTENCE_LENGTH]
        said += len(long)
        distinct += len(set(long))
    return (said - distinct) / said if said else 0.0


def unclosed(rollouts: Sequence[Rollout]) -> float:
    """Share of responses without exactly one closed answer, of those that were not cut; 0 without any.

    Their correctness is 0, whatever they say.
    """
    whole = [rollout.completion.text for rollout in rollouts if not rollout.completion.was_cut]
    return sum(extract_answer(text) is None for text in whole) / max(1, len(whole))


def _value(rollout: Rollout, part: str) -> float:
    return rollout.reward.parts.get(part, 0.0)


def _totals(group: Group) -> list[float]:
    return [rollout.reward.total for rollout in group]


def _centred(values: Sequence[float]) -> list[float]:
    return [0.0 if value is None else value for value in centred(values)]
