"""Weights for what the rollout engine and the learner compute differently, by hand."""

from typing import Any

import pytest
import torch

from ral_system.algorithms.correction import rollout_correction
from ral_system.config.algorithm import CorrectionConfig

W = [[1.0, 3.0, 0.25, 1.5], [4.0, 1.0, 1.0, 9.0]]
"""pi_old / mu. The last position of the second sequence is padding."""
MASK = torch.tensor([[True, True, True, True], [True, True, True, False]])


def corrected(kind: Any, **bounds: float) -> tuple[list[list[float]], list[list[bool]]]:
    config = CorrectionConfig(kind=kind, **{"low": 0.5, "high": 2.0} | bounds)
    mu = torch.full((2, 4), 0.1).log()
    found = rollout_correction(mu + torch.tensor(W).log(), mu, MASK, config)
    assert not found.weights.requires_grad
    return found.weights.tolist(), found.outside.tolist()


def test_none_leaves_everything() -> None:
    assert corrected("none") == ([[1.0] * 4] * 2, [[False] * 4] * 2)


def test_truncation_bounds_from_above_alone() -> None:
    weights, outside = corrected("truncate")
    assert weights == [pytest.approx([1, 2, 0.25, 1.5], rel=1e-6), pytest.approx([2, 1, 1, 1], rel=1e-6)]
    assert outside == [[False, True, False, False], [True, False, False, False]]


def test_masking_drops_what_is_outside_on_either_side() -> None:
    weights, outside = corrected("mask")
    assert weights == [pytest.approx([1, 0, 0, 1.5], rel=1e-6), pytest.approx([0, 1, 1, 1], rel=1e-6)]
    assert outside == [[False, True, True, False], [True, False, False, False]]


def test_rejection_goes_by_the_geometric_mean_of_a_sequence() -> None:
    # (1 · 3 · 0.25 · 1.5)^(1/4) = 1.125^(1/4) = 1.03; (4 · 1 · 1)^(1/3) = 1.587
    assert corrected("reject_sequence") == ([[1.0] * 4] * 2, [[False] * 4] * 2)
    weights, outside = corrected("reject_sequence", high=1.5)
    assert weights == [[1.0] * 4, [0.0, 0.0, 0.0, 1.0]]
    assert outside == [[False] * 4, [True, True, True, False]]


@pytest.mark.parametrize("kind", ["none", "truncate", "mask", "reject_sequence"])
def test_where_both_engines_agree_all_are_exactly_1(kind: Any) -> None:
    log_p = torch.randn(3, 5)
    config = CorrectionConfig(kind=kind, low=1.0, high=1.0)
    found = rollout_correction(log_p, log_p, torch.ones(3, 5, dtype=torch.bool), config)
    assert torch.equal(found.weights, torch.ones(3, 5)) and not found.outside.any()


@pytest.mark.parametrize("kind", ["truncate", "mask", "reject_sequence"])
def test_garbage_behind_the_mask_stays_there(kind: Any) -> None:
    config = CorrectionConfig(kind=kind, low=0.5, high=2.0)
    old = torch.tensor([[0.0, float("nan")]])
    found = rollout_correction(old, torch.zeros(1, 2), torch.tensor([[True, False]]), config)
    assert found.weights.tolist() == [[1.0, 1.0]] and not found.outside.any()
