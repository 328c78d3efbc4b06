"""VGPO's factors: numbers by hand, the slow way, and where nothing differs."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral_system.algorithms.visual_similarity import response_factors, response_score, token_factors, visual_weights
from ral_system.config.perception import VgpoConfig


def settings(**changes: object) -> VgpoConfig:
    given: dict[str, object] = {"name": "vgpo", "late_weight": 0.3, "late_share": 0.2, "response_score": "mean"}
    bounds = {
        "least_token_factor": 0.1,
        "most_token_factor": 2,
        "least_response_factor": 0.9,
        "most_response_factor": 2,
    }
    return VgpoConfig.model_validate(given | bounds | changes)


EXAMPLE = np.array([0.1, 0.3, 0.2, 0.5])
"""Similarities of four tokens; those of the update go from 0.1 to 0.5."""


def test_numbers_by_hand() -> None:
    """Scaled (0, .5, .25, 1); of the last two, one is raised by 1.3; all are then divided by 1.3."""
    weights = visual_weights(EXAMPLE, 0.1, 0.5, settings())
    assert weights == pytest.approx([0, 5 / 13, 2.5 / 13, 1])
    assert token_factors(weights, settings()) == pytest.approx([0.605769, 0.990385, 0.798077, 1.605769], abs=1e-6)
    assert response_score(weights, settings()) == pytest.approx(0.394231, abs=1e-6)
    assert response_score(weights, settings(response_score="sum")) == pytest.approx(4 * 0.394231, abs=4e-6)
    factors = response_factors([0.394231, 0.2, 0.6], settings())
    assert factors == pytest.approx([0.990385, 0.9, 1.504808], abs=1e-6)  # 1 - 0.495192 is below the bound


def test_without_a_late_weight_the_range_of_the_update_does_not_matter() -> None:
    for lowest, highest in ((0.1, 0.5), (-0.3, 0.9)):
        plain = visual_weights(EXAMPLE, lowest, highest, settings(late_weight=0))
        assert plain == pytest.approx([0, 0.5, 0.25, 1])
    raised = visual_weights(EXAMPLE, -0.3, 0.9, settings())  # scaled (1/3, 1/2, 5/12, 2/3 · 1.3)
    assert raised == pytest.approx([0, 0.3125, 0.15625, 1])


def slow_weights(similarity: list[float], low: float, high: float, late_weight: float, late_share: Fraction) -> list:
    total = len(similarity)
    scaled = [(x - low) / (high - low) if high > low else 0.0 for x in similarity]
    late = [t for t in range(1, total + 1) if 2 * t > total]
    ranked = sorted(late, key=lambda t: (-scaled[t - 1], t))
    chosen = ranked[: math.ceil(late_share * len(late))]
    raised = [w * (1 + late_weight * t / total) if t in chosen else w for t, w in enumerate(scaled, start=1)]
    span = max(raised) - min(raised)
    return [(w - min(raised)) / span if span > 0 else 0.0 for w in raised]


@given(
    st.lists(st.lists(st.integers(-8, 8), min_size=1, max_size=13), min_size=1, max_size=5),
    st.sampled_from([Fraction(1, 10), Fraction(1, 5), Fraction(1, 2), Fraction(1)]),
    st.sampled_from([0.0, 0.3, 2.0]),
)
def test_the_slow_way_finds_the_same(group: list[list[int]], share: Fraction, late: float) -> None:
    chosen = settings(late_share=float(share), late_weight=late)
    similarity = [[x / 8 for x in row] for row in group]
    low, high = min(min(row) for row in similarity), max(max(row) for row in similarity)
    scores = []
    for row in similarity:
        weights = visual_weights(np.array(row), low, high, chosen)
        assert weights == pytest.approx(slow_weights(row, low, high, late, share))
        mean = sum(weights) / len(weights)
        assert token_factors(weights, chosen) == pytest.approx([min(2, max(0.1, 1 + w - mean)) for w in weights])
        scores.append(response_score(weights, chosen))
    span = max(scores) - min(scores)
    scaled = [(s - min(scores)) / span if span > 0 else 0.0 for s in scores]
    mean = sum(scaled) / len(scaled)
    assert response_factors(scores, chosen) == pytest.approx([min(2, max(0.9, 1 + s - mean)) for s in scaled])


@pytest.mark.parametrize("row", [[0.3], [0.3, 0.3, 0.3]])
def test_where_nothing_differs_factors_are_exactly_one(row: list[float]) -> None:
    weights = visual_weights(np.array(row), 0.3, 0.3, settings())
    assert not weights.any() and (token_factors(weights, settings()) == 1).all()
    assert (response_factors([0.4, 0.4, 0.4], settings()) == 1).all()
    assert (response_factors([0.7], settings()) == 1).all()


def test_a_sum_pays_length_and_a_mean_does_not() -> None:
    """Weights that are there twice: the mean's score stays, the sum's doubles."""
    weights = np.array([0.0, 1.0, 0.5])
    twice = np.tile(weights, 2)
    assert response_score(twice, settings()) == response_score(weights, settings())
    by_sum = settings(response_score="sum")
    assert response_score(twice, by_sum) == 2 * response_score(weights, by_sum)


def test_bounds_hold_and_may_move_the_mean() -> None:
    peak = np.array([1.0, *[0.0] * 3])
    assert token_factors(peak, settings()) == pytest.approx([1.75, 0.75, 0.75, 0.75])
    assert token_factors(peak, settings(least_token_factor=0.8, most_token_factor=1.2)) == pytest.approx(
        [1.2, 0.8, 0.8, 0.8]
    )
    low = response_factors([0.0, 1.0, 1.0, 1.0], settings())
    assert low == pytest.approx([0.9, 1.25, 1.25, 1.25]) and low.mean() > 1
