"""What each response is worth to the attention objective, and the controls that take that away."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from ral_system.algorithms.advantages import centred
from ral_system.config.algorithm import AlgorithmConfig
from ral_system.controller.judging import NO_VERDICT
from ral_system.types import Credit, Rollout


def attention_credit(rollouts: Sequence[Rollout], algorithm: AlgorithmConfig, seed: int) -> dict[str, Credit]:
    """Credit by completion id. A response counts if it has a verdict and is not masked as over-long.

    `attention.advantages`: permuted lets the advantages and outcomes of a group's responses that count change places,
    in an order that depends on `seed` and the prompt; absolute and negative_absolute are |A| and -|A| of RAL.
    """
    kind = algorithm.attention.advantages
    groups: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.prompt.id].append(rollout)
    found = {}
    for prompt, group in groups.items():
        group.sort(key=lambda rollout: rollout.completion.index)
        judged = tuple(centred([r.reward.total if _counts(r, algorithm) else None for r in group]))
        order = list(range(len(group)))
        if kind == "permuted":
            places = [i for i in order if judged[i] is not None]
            sources = random.Random(f"{seed}/{prompt}").sample(places, len(places))
            for place, source in zip(places, sources, strict=True):
                order[place] = source
        outcomes = tuple(judged[i] for i in order)
        for rollout, source in zip(group, order, strict=True):
            advantage = group[source].advantage
            if kind in ("absolute", "negative_absolute"):
                advantage = abs(advantage) * (1 if kind == "absolute" else -1)
            reward = group[source].reward.total if judged[source] is not None else None
            found[rollout.completion.id] = Credit(advantage, outcomes, judged, reward)
    return found


def _counts(rollout: Rollout, algorithm: AlgorithmConfig) -> bool:
    masked = algorithm.overlong.handling == "mask" and rollout.completion.was_cut
    return not masked and rollout.reward.status not in NO_VERDICT
