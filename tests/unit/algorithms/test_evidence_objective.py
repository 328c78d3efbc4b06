"""EASE's loss by hand: bounded, gated, without an advantage, with a gradient at the old policy."""

import math

import pytest
import torch

from ral_system.algorithms.attention_objectives.evidence import evidence
from ral_system.algorithms.attention_objectives.inputs import AttentionInputs, Evidence
from ral_system.algorithms.divergence_sum import divergence
from ral_system.config.attention_objective import EvidenceObjectiveConfig

SETTINGS = EvidenceObjectiveConfig(name="evidence", gate=0.5, spread=0.25, smoothing=0.1, boxes="own", missing="raise")
TARGET = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)


def loss_of(rows_BRN: torch.Tensor, counted: list[bool], update_rows: int) -> torch.Tensor:
    divergences = divergence(rows_BRN, TARGET.expand_as(rows_BRN), "reverse_kl")
    rows = torch.ones(divergences.shape, dtype=torch.bool)
    nothing = torch.zeros_like(divergences)
    advantages = torch.tensor([5.0, -5.0])[: len(counted)]
    found = Evidence(divergences, torch.tensor(counted), update_rows)
    return evidence(AttentionInputs(nothing, advantages, rows, (), "token_mean", 99, 99, found), SETTINGS)


def test_by_hand() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().requires_grad_()
    loss = loss_of(logits.softmax(-1)[None, None], [True], 1)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(0.6758, abs=5e-5)
    assert gradient.tolist() == pytest.approx([0.4668, -0.0811, -0.3857], abs=5e-5)


def test_only_what_counts_has_a_part_whatever_the_advantage() -> None:
    """Two responses of two rows; the first alone counts, and its rows have as much weight as the update has rows."""
    logits = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rows = logits.softmax(-1)
    loss = loss_of(rows, [True, False], 4)
    by_hand = sum(float((u * (u / TARGET).log()).sum()) for u in rows[0].detach()) / 4
    assert loss.item() == pytest.approx(by_hand)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0].abs().min() > 0 and not gradient[1].any()
    none = loss_of(logits.softmax(-1), [False, False], 1)
    assert none.item() == 0 and none.requires_grad


def test_it_is_bounded_by_the_smoothing() -> None:
    """The farthest row looks only where the target has nothing but what is spread evenly."""
    n, smoothing = 7, 0.1
    target = torch.tensor([1 - smoothing, *[0.0] * (n - 1)], dtype=torch.float64) + smoothing / n
    worst = divergence(torch.eye(n, dtype=torch.float64), target.expand(n, n), "reverse_kl")
    assert worst.max().item() == pytest.approx(math.log(n / smoothing))
