"""Credit for where a response looks: the mean advantage of a glance at each key, over the rest of its group."""

from __future__ import annotations

import torch
from torch import Tensor

from ral_system.algorithms.attention_objectives.inputs import SMALLEST_MASS, AttentionInputs, Glances
from ral_system.algorithms.reduction import reduce_rows
from ral_system.config.attention_objective import CreditObjectiveConfig

_ROUNDING = 1e-9
"""A variance below it, relative to that of the outcomes, is a rounding error."""


def credit(inputs: AttentionInputs, settings: CreditObjectiveConfig) -> Tensor:
    """L = -mean_g Σ_k u_g(k) Q_g(k) + proximal · E_t[ D(p_t ‖ anchor_t) ], to be minimised.

    u_g(k) is the share of key k in what response g looks at (`Glances.shares`), Q_g(k) what that key was worth to the
    others of its group (`key_values`). The second term holds every row near the anchor, whatever the advantages: the
    first is linear and has no optimum of its own. It is the policy gradient of a glance, with the group as its
    baseline, in expectation over glances. Its gradient at the old policy is not 0, and every sequence has one, also one
    whose own advantage is 0.

    The first term is exactly 0 for a group whose rewards are all alike, or with fewer than two verdicts, and for a
    prompt without keys.
    """
    value = sum((_value(glances) for glances in inputs.glances), torch.zeros(()))
    loss = -value / inputs.update_sequences
    if settings.proximal == 0:
        return loss
    return loss + settings.proximal * reduce_rows(
        inputs.divergences,
        inputs.rows,
        reduction=inputs.reduction,
        global_tokens=inputs.update_rows,
        global_sequences=inputs.update_sequences,
    )


def key_values(group: Tensor, outcomes: tuple[float | None, ...], index: int) -> Tensor:
    """Q_g(k) = Σ_j A_j u_j(k) / Σ_j u_j(k) over the group's responses j ≠ g with a verdict: [..., N], for g = `index`.

    `group` [G, ..., N] as in `Glances`. Q lies between the least and the largest A_j; 0 for a key that the others do
    not look at.
    """
    counts = [outcome is not None and j != index for j, outcome in enumerate(outcomes)]
    seen = group * _column(counts, group)
    mass = seen.sum(0)
    worth = (seen * _column([outcome or 0.0 for outcome in outcomes], group)).sum(0)
    return torch.where(mass < SMALLEST_MASS, 0.0, worth / mass.clamp(min=SMALLEST_MASS))


def contrast(group: Tensor, outcomes: tuple[float | None, ...]) -> tuple[Tensor, Tensor]:
    """Compute Var(Q_g) of each response g under its own shares at the old weights, and its mean over all permutations
    of the group's outcomes: [G] each, averaged over layers and heads. Both are 0 for a response without a verdict, for
    a group with fewer than three, and if all responses look at the same keys. `group` [G, ..., N] as in `Glances`.

    If the ratio of their sums is near 1, right and wrong responses look at the same keys, and there is nothing to learn
    from where they look. The mean is exact: no permutations are sampled. Var(Q_g) is a quadratic form Σ A_i A_j B_ij in
    the outcomes, which sum to 0; its mean is therefore (tr B - Σ_{i≠j} B_ij / (n - 1)) Σ A² / n.
    """
    found = torch.zeros(2, len(outcomes), dtype=torch.float64, device=group.device)
    known = [j for j, outcome in enumerate(outcomes) if outcome is not None]
    n = len(known)
    if n < 3:
        return found[0], found[1]
    u = group[known]
    a = _column([outcome or 0.0 for outcome in outcomes], group)[known]
    others = u.sum(0) - u  # what all but g looked at
    looked = others >= SMALLEST_MASS
    per_mass = torch.where(looked, 1 / others.clamp(min=SMALLEST_MASS), 0.0)
    q = ((a * u).sum(0) - a * u) * per_mass
    variance = (u * q.square()).sum(-1) - (u * q).sum(-1).square()
    # B_ij = Cov(w_i, w_j) under u_g, where w_j = u_j / others_g for j ≠ g, which add up to 1 where anyone looked.
    means = torch.einsum("g...k,j...k->gj...", u * per_mass, u).square()
    means_of_others = means.sum(1) - means.diagonal(dim1=0, dim2=1).movedim(-1, 0)
    trace = (u * per_mass.square() * (u.square().sum(0) - u.square())).sum(-1) - means_of_others
    seen = (u * looked).sum(-1)
    whole = seen - seen.square()
    shuffled = a.square().mean() * (trace - (whole - trace) / (n - 1))
    alike = shuffled <= _ROUNDING * a.square().mean()
    variance, shuffled = variance.masked_fill(alike, 0.0), shuffled.masked_fill(alike, 0.0)
    for row, values in enumerate((variance, shuffled)):
        found[row, known] = values.flatten(1).mean(1) if values.ndim > 1 else values
    return found[0], found[1]


def _value(glances: Glances) -> Tensor:
    values = key_values(glances.group, glances.outcomes, glances.index).to(glances.own)
    return (glances.shares * values).sum(-1).mean()


def _column(values: list[float] | list[bool], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.ndim - 1))
