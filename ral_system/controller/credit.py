"""What each response is worth to the attention objective, and the controls that take that away."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from ral_system.algorithms.advantages import centred
from ral_system.config.attention import AttentionConfig
from ral_system.controller.judging import NO_VERDICT
from ral_system.types import Credit, Rollout


def attention_credit(rollouts: Sequence[Rollout], settings: AttentionConfig, seed: int) -> dict[str, Credit]:
    """Credit by completion id. With `advantages=permuted` a group's advantages and outcomes change places, in an order
    that depends on `seed` and the prompt; absolute and negative_absolute are |A| and -|A| of RAL.
    """
    groups: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.prompt.id].append(rollout)
    found = {}
    for prompt, group in groups.items():
        group.sort(key=lambda rollout: rollout.completion.index)
        order = list(range(len(group)))
        if settings.advantages == "permuted":
            random.Random(f"{seed}/{prompt}").shuffle(order)
        rewards = centred([None if r.reward.status in NO_VERDICT else r.reward.total for r in group])
        outcomes = tuple(rewards[i] for i in order)
        for rollout, source in zip(group, order, strict=True):
            advantage = group[source].advantage
            if settings.advantages in ("absolute", "negative_absolute"):
                advantage = abs(advantage) * (1 if settings.advantages == "absolute" else -1)
            found[rollout.completion.id] = Credit(advantage, outcomes)
    return found
