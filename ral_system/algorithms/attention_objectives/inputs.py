"""What attention objectives are made of. Suffixes: B sequences, R rows (padded), G responses of a group, N keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ral_system.config.choices import Reduction

SMALLEST_MASS = 1e-8
"""Attention below it, summed over rows or responses, counts as none: nothing is divided by it."""


@dataclass(frozen=True, slots=True)
class Glances:
    """Where one response looks, and what its group looked at and was worth. Leading dimensions: layers, and heads.

    A glance is attention on one of the keys that the whole group has.
    """

    own: Tensor
    """[..., N], the attention on each key, summed over the response's rows; differentiable."""
    group: Tensor
    """float64 [G, ..., N], the shares of every response of the group at the weights that made it (the last of several);
    constant, on the host."""
    outcomes: tuple[float | None, ...]
    """Reward minus the mean of the group's rewards, response by response; None for one that does not count."""
    index: int
    """Which of the group's responses it is."""

    @property
    def shares(self) -> Tensor:
        """[..., N], each key's share of `own`."""
        return shares(self.own)


@dataclass(frozen=True, slots=True)
class Evidence:
    """How far rows are from where the answer to their question is to be seen."""

    divergences: Tensor
    """[B, R], of every row that counts to its prompt's target, 0 elsewhere; differentiable."""
    counted: Tensor
    """bool [B], which responses count."""
    update_rows: int
    """Rows of all responses that count, of the whole update."""


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """One micro-batch, and the denominators of the whole update."""

    divergences: Tensor
    """[B, R], of every row to the anchor's; differentiable where the objective says so."""
    advantages: Tensor
    """[B], what the sequences' divergences are weighed with."""
    rows: Tensor
    """bool [B, R], which positions are rows."""
    glances: tuple[Glances, ...]
    """[B]; empty for objectives that do not read them."""
    reduction: Reduction
    update_rows: int
    update_sequences: int
    evidence: Evidence | None = None
    """None for objectives that do not read it."""
    sharpened: Tensor | None = None
    """[B, R], KL(anchor's row, sharpened or flattened ‖ row), differentiable; None for objectives that do not read it.
    """


def shares(sums: Tensor) -> Tensor:
    """Divide by the sum over the last axis; exactly 0, with a gradient of 0, where that is almost 0."""
    mass = sums.sum(-1, keepdim=True)
    return torch.where(mass < SMALLEST_MASS, 0.0, sums / mass.clamp(min=SMALLEST_MASS))
