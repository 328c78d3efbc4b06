"""Differences paired by seed and question: hand-worked numbers, tables of Student's t, and coverage by simulation."""

from math import inf, isnan, nan

import numpy as np
import pytest

from ral_system.evaluation.paired import Components, holm, paired_difference, seeds_needed, t_quantile, two_sided_p


@pytest.mark.parametrize(
    ("probability", "freedom", "tabled"),
    [
        (0.975, 1, 12.7062),
        (0.975, 4, 2.77645),
        (0.975, 9, 2.26216),
        (0.95, 5, 2.01505),
        (0.8, 4, 0.940965),
        (0.975, 1000, 1.96234),
    ],
)
def test_quantiles_of_student_s_t_are_those_of_the_tables(probability: float, freedom: int, tabled: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(tabled, rel=1e-4)
    assert two_sided_p(tabled, freedom) == pytest.approx(2 * (1 - probability), rel=1e-3)


def test_a_difference_worked_by_hand() -> None:
    """Differences of seeds ½, 0 (mean ¼) and of questions ½, ½, 0, 0: MS_S = 4·⅛ = ½, MS_Q = 2·1/12 = 1/6, rest 1/6."""
    of = np.array([[1, 1, 0, 0], [0, 0, 1, 1]]) + 0.0
    over = np.array([[0, 0, 0, 0], [0, 0, 1, 1]]) + 0.0
    found = paired_difference(of, over)
    assert found.mean == pytest.approx(0.25)
    assert found.components == Components(pytest.approx((0.5 - 1 / 6) / 4), 0.0, pytest.approx(1 / 6))
    error, freedom = (0.5 / 8) ** 0.5, 1.0  # ½ + 1/6 − 1/6 of 8; 0.25 / (0.25 + 1/108 + 1/108) < 1
    half = t_quantile(0.975, freedom) * error
    assert (found.low, found.high) == (pytest.approx(0.25 - half), pytest.approx(0.25 + half))
    assert found.p == pytest.approx(two_sided_p(1.0, 1.0)) == pytest.approx(0.5, abs=1e-3)


def test_of_one_seed_there_is_a_mean_and_no_interval() -> None:
    found = paired_difference(np.ones((1, 3)), np.zeros((1, 3)))
    assert found.mean == 1 and all(isnan(v) for v in (found.low, found.high, found.p)) and found.components is None


def test_equal_answers_are_certainly_equal() -> None:
    scores = np.arange(6.0).reshape(2, 3)
    found = paired_difference(scores, scores)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


@pytest.mark.parametrize(("of_seeds", "of_questions"), [(0.02, 0.0), (0.0, 0.3), (0.02, 0.3)])
def test_the_interval_holds_the_truth_as_often_as_it_says(of_seeds: float, of_questions: float) -> None:
    """Five seeds and 200 questions, each with an effect of its own: 95 % of the intervals, or more, hold the mean."""
    rng, held, runs = np.random.default_rng(0), 0, 300
    for _ in range(runs):
        noise = rng.normal(0, 0.4, (5, 200))
        d = 0.01 + rng.normal(0, of_seeds, (5, 1)) + rng.normal(0, of_questions, (1, 200)) + noise
        found = paired_difference(d, np.zeros_like(d))
        held += found.low <= 0.01 <= found.high
    assert held >= 0.925 * runs


def test_holm_multiplies_the_smallest_by_the_count_and_keeps_the_order() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert found["a"] == pytest.approx(0.03) and found["c"] == found["b"] == pytest.approx(0.06)
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_a_claim_that_could_not_be_tested_counts_as_one() -> None:
    found = holm({"a": 0.01, "failed": nan})
    assert found["a"] == pytest.approx(0.02) and isnan(found["failed"])


@pytest.mark.parametrize("components", [Components(0.014**2, 0.0, 0.0), Components(0.01**2, 0.02, 0.1)])
def test_seeds_needed_are_those_at_which_a_simulated_study_has_the_power(components: Components) -> None:
    """On 1,000 questions; a few seeds fewer have less power."""
    questions, rng = 1000, np.random.default_rng(1)
    needed = seeds_needed(components, questions, 0.02)

    def power(seeds: int) -> float:
        found, runs = 0, 200
        for _ in range(runs):
            by_question = rng.normal(0, components.questions**0.5, (1, questions))
            noise = rng.normal(0, components.rest**0.5, (seeds, questions))
            effect = 0.02 + rng.normal(0, components.seeds**0.5, (seeds, 1))
            found += paired_difference(effect + by_question + noise, np.zeros((seeds, questions))).low > 0
        return found / runs

    assert 2 < needed < 30
    assert power(int(needed)) > 0.72
    assert power(max(2, int(needed) // 2)) < 0.72


def test_no_number_of_seeds_makes_up_for_too_few_questions() -> None:
    assert seeds_needed(Components(0.01**2, 0.09, 0.1), 1000, 0.02) == inf
    assert seeds_needed(Components(0.0, 0.0, 0.0), 1000, 0.02) == 2
