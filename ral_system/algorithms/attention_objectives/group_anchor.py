"""A group's anchor: towards where its better responses looked, away from where its worse ones did."""

from __future__ import annotations

import torch
from torch import Tensor

from ral_system.algorithms.attention_objectives.inputs import SMALLEST_MASS, AttentionInputs, Glances
from ral_system.algorithms.divergence_sum import divergence
from ral_system.config.attention_objective import GroupAnchorObjectiveConfig


def group_anchor(inputs: AttentionInputs, settings: GroupAnchorObjectiveConfig) -> Tensor:
    """L = mean_g[ JSD(u_g ‖ q+_g) - repel · JSD(u_g ‖ q-_g) ], to be minimised; within [-repel · ln 2, ln 2].

    u_g(k) is the share of key k in what response g looks at; q+ and q- are means of u_j over the others of its group
    with A_j > 0 and A_j < 0, at the weights that made them, weighed with |A_j|. A side without members drops out. The
    gradient at the old policy is not 0. Near the data the optimum is (q+ - repel · q-) / (1 - repel): repel = 0
    imitates, 1/2 aims at 2 q+ - q-, and 1, which is refused, would have none.

    Exactly 0 for a group whose rewards are all alike, or with fewer than two verdicts, and for a prompt without keys.
    """
    total = sum((_distance(glances, settings.repel) for glances in inputs.glances), torch.zeros(()))
    return total / inputs.update_sequences


def side(group: Tensor, outcomes: tuple[float | None, ...], index: int, sign: float) -> Tensor:
    """q+ (`sign` 1) or q- (-1) of response `index`: [..., N]; all 0 where it has no members that look at any key.

    `group` as in `Glances`.
    """
    weights = [0.0 if a is None or j == index else max(sign * a, 0.0) for j, a in enumerate(outcomes)]
    column = torch.tensor(weights, dtype=group.dtype, device=group.device).view(-1, *[1] * (group.ndim - 1))
    column = column * (group.sum(-1, keepdim=True) > 0)
    total = column.sum(0)
    return torch.where(total == 0, 0.0, (group * column).sum(0) / total.clamp(min=SMALLEST_MASS))


def _distance(glances: Glances, repel: float) -> Tensor:
    found = glances.own.new_zeros(())
    for sign, weight in ((1.0, 1.0), (-1.0, -repel)):
        target = side(glances.group, glances.outcomes, glances.index, sign).to(glances.own)
        has_members = target.sum(-1) > 0
        found = found + weight * torch.where(has_members, divergence(glances.shares, target, "jsd"), 0.0).mean()
    return found
