"""Student's intervals over seeds, against printed tables and hand-worked numbers."""

import math

import pytest

from ral_system.studies.intervals import over_seeds, t_quantile


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281), (30, 2.0423)],
)
def test_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(quantile, abs=5e-5)


def test_other_levels() -> None:
    assert t_quantile(0.95, 5) == pytest.approx(2.0150, abs=5e-5)
    assert t_quantile(0.5, 7) == pytest.approx(0, abs=1e-12)


def test_an_interval_by_hand() -> None:
    found = over_seeds([1.0, 2.0, 3.0])  # standard deviation 1
    assert (found.mean, found.low) == (2.0, pytest.approx(2 - 4.3027 / math.sqrt(3), abs=1e-4))
    assert found.high == pytest.approx(2 + 4.3027 / math.sqrt(3), abs=1e-4)


def test_one_seed_has_no_interval() -> None:
    found = over_seeds([5.0])
    assert (found.mean, found.low, found.high) == (5.0, None, None)
