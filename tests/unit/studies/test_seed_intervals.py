"""Student's intervals over seeds, against printed tables and hand-worked numbers."""

import math

import pytest

from ral_system.studies.intervals import over_seeds


def test_an_interval_by_hand() -> None:
    found = over_seeds([1.0, 2.0, 3.0])  # standard deviation 1
    assert (found.mean, found.low) == (2.0, pytest.approx(2 - 4.3027 / math.sqrt(3), abs=1e-4))
    assert found.high == pytest.approx(2 + 4.3027 / math.sqrt(3), abs=1e-4)


def test_one_seed_has_no_interval() -> None:
    found = over_seeds([5.0])
    assert (found.mean, found.low, found.high) == (5.0, None, None)
