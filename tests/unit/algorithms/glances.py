"""Glances of made-up responses, for the tests of this folder."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ral_system.algorithms.attention_objectives.inputs import AttentionInputs, Glances, shares

LOOKS = ((0.6, 0.3, 0.1), (0.2, 0.3, 0.5), (0.5, 0.3, 0.2))
OUTCOMES = (0.5, -0.5, 0.0)


def of_group(
    looks: Sequence[Sequence[float]], outcomes: Sequence[float | None], own: Sequence[Tensor] | None = None
) -> tuple[Glances, ...]:
    """One layer's glances of every response; they look as they did, unless `own` says how they look now."""
    sums = torch.tensor(looks, dtype=torch.float64)[:, None]
    mine = list(sums) if own is None else [u[None] for u in own]
    return tuple(Glances(u, shares(sums), tuple(outcomes), i) for i, u in enumerate(mine))


def inputs_of(glances: Sequence[Glances], divergences: Tensor | None = None) -> AttentionInputs:
    """A micro-batch that is the whole update, of one row for each response."""
    count = len(glances)
    found = torch.zeros(count, 1, dtype=torch.float64) if divergences is None else divergences
    rows = torch.ones(count, 1, dtype=torch.bool)
    return AttentionInputs(found, torch.zeros(count), rows, tuple(glances), "token_mean", count, count)


def slopes(loss: Tensor, logits: Sequence[Tensor]) -> list[float]:
    """∂L/∂e of each response's logits, one after the other."""
    return torch.cat(torch.autograd.grad(loss, list(logits), retain_graph=True)).tolist()


def logits_of(looks: Sequence[Sequence[float]]) -> list[Tensor]:
    return [torch.tensor(u, dtype=torch.float64).log().requires_grad_() for u in looks]
