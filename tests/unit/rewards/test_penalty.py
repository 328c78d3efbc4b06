"""What a response's length takes off its reward."""

import pytest

from ral_system.rewards.penalty import overlong_penalty


@pytest.mark.parametrize(
    ("length", "limit", "expected"),
    [(6, 10, 0.0), (7, 10, 0.25), (10, 10, 1.0), (0, 3, 0.0), (1, 3, 1 / 3), (3, 3, 1.0)],
)
def test_it_grows_over_the_last_four_tokens_or_over_all_there_are(length: int, limit: int, expected: float) -> None:
    assert overlong_penalty(length, limit=limit, buffer=4) == pytest.approx(expected)
