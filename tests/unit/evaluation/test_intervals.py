"""Bootstrap intervals, against what is known of means."""

import numpy as np
import pytest

from ral_system.evaluation.intervals import bootstrap, intervals, paired_interval


def bootstrap_intervals(units, figures, level=0.95, **given):  # type: ignore[no-untyped-def]
    return intervals(bootstrap(units, figures, **given), level)


def mean(values) -> dict[str, float]:  # type: ignore[no-untyped-def]
    return {"mean": sum(values) / len(values)}


def test_of_a_share_it_is_about_two_standard_errors() -> None:
    answers = [1.0] * 70 + [0.0] * 30
    low, high = bootstrap_intervals(answers, mean, resamples=4000)["mean"]
    error = (0.7 * 0.3 / 100) ** 0.5
    assert low == pytest.approx(0.7 - 1.96 * error, abs=0.012)
    assert high == pytest.approx(0.7 + 1.96 * error, abs=0.012)
    narrow = bootstrap_intervals(answers, mean, level=0.5, resamples=4000)["mean"]
    assert low < narrow[0] < 0.7 < narrow[1] < high


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        low, high = bootstrap_intervals(rng.normal(size=60).tolist(), mean, resamples=200, seed=trial)["mean"]
        hits += low <= 0 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_equal_answers_leave_no_doubt_and_one_says_nothing() -> None:
    assert bootstrap_intervals([0.5] * 10, mean)["mean"] == (0.5, 0.5)
    assert bootstrap_intervals([1.0], mean) == {}
    assert bootstrap_intervals([], mean) == {}


def test_a_figure_that_a_sample_lacks_is_left_out_of_it() -> None:
    def by_kind(units) -> dict[str, float]:  # type: ignore[no-untyped-def]
        rare = [value for kind, value in units if kind == "rare"]
        return {"rare": sum(rare) / len(rare)} if rare else {}

    units = [("rare", 1.0)] * 2 + [("often", 0.0)] * 9
    assert np.isnan(bootstrap(units, by_kind)["rare"]).any()
    assert bootstrap_intervals(units, by_kind)["rare"] == (1.0, 1.0)
    assert bootstrap_intervals(units[1:], by_kind) == {}  # one unit has a width of 0, and says nothing


def by_category(units) -> dict[str, float]:  # type: ignore[no-untyped-def]
    parts: dict[str, list[float]] = {"all": []}
    for category, value in units:
        parts["all"].append(value)
        parts.setdefault(category, []).append(value)
    return {name: sum(values) / len(values) for name, values in parts.items()}


def test_every_sample_has_as_many_of_each_stratum_as_there_are() -> None:
    units = [("a", 0.0), ("b", 10.0), ("a", 1.0), ("b", 10.0), ("c", 4.0)]
    found = bootstrap(units, by_category, strata=[category for category, _ in units])
    assert found.keys() == {"all", "a", "b"}  # c is the same in every sample
    assert set(found["all"]) == {24 / 5, 25 / 5, 26 / 5} and set(found["a"]) == {0, 0.5, 1} and set(found["b"]) == {10}
    assert bootstrap(units[1:3] + units[4:], by_category, strata=["b", "a", "c"]) == {}


def test_a_sum_over_strata_varies_with_any_of_them() -> None:
    def points(units) -> dict[str, float]:  # type: ignore[no-untyped-def]
        found = by_category(units)
        return found | ({"a + b": found["a"] + found["b"]} if {"a", "b"} <= found.keys() else {})

    units = [("a", 0.0), ("a", 1.0), ("b", 4.0)]
    found = bootstrap(units, points, strata=["a", "a", "b"])
    assert set(found["a + b"]) == {4, 4.5, 5} and "b" not in found
    once = [("a", 0.0), ("b", 4.0), ("c", 1.0), ("c", 2.0)]
    assert bootstrap(once, points, strata=["a", "b", "c", "c"]).keys() == {"all", "c"}
    assert "a + b" in bootstrap(units, points)


def test_a_gain_is_paired() -> None:
    """Every question is answered better by the same: there is no doubt about that, whatever is drawn."""
    first = np.random.default_rng(0).random(30)
    worse, better = (bootstrap(values.tolist(), mean) for values in (first, first + 0.1))
    assert paired_interval(better, worse, "mean") == pytest.approx((0.1, 0.1))
    assert paired_interval(better, worse, "count") is None
    # One question of ten is better by 1: it is drawn Binomial(10, 1/10) times: quantiles 0 and 3.
    one = bootstrap([1.0] + [0.0] * 9, mean, resamples=4000)
    assert paired_interval(one, bootstrap([0.0] * 10, mean, resamples=4000), "mean") == pytest.approx((0.0, 0.3))


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).random(30).tolist()
    assert bootstrap_intervals(values, mean) == bootstrap_intervals(values, mean)
    assert bootstrap_intervals(values, mean) != bootstrap_intervals(values, mean, seed=1)
