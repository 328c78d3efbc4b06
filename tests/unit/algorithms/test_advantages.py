import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral_system.algorithms.advantages import group_normalised

REWARDS = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.1, 0.9, 1.0])), min_size=1, max_size=12)


def test_a_group_worked_by_hand() -> None:
    # rewards 1, 0, 0, 0: mean 1/4, population variance (9/16 + 3 · 1/16) / 4 = 3/16, std = √3/4 = 0.4330127
    # A = (3/4) / (√3/4) = √3 for the first, (-1/4) / (√3/4) = -1/√3 for the others (up to the 1e-6 in the divisor)
    found = group_normalised([1.0, 0.0, 0.0, 0.0])
    assert found == pytest.approx([3**0.5, *3 * [-(3**-0.5)]], rel=3e-6)
    assert found[0] == 0.75 / (3**0.5 / 4 + 1e-6)


def test_a_completion_without_verdict_is_left_out_and_gets_zero() -> None:
    # the verdicts 1, 0: mean 1/2, std 1/2, so A = ±1 whatever stands between them
    assert group_normalised([None, 1.0, None, 0.0]) == pytest.approx([0.0, 1.0, 0.0, -1.0], rel=3e-6)


@pytest.mark.parametrize("rewards", [[0.3, 0.3, 0.3], [0.1 + 0.2, 0.3], [None, 1.0, None], [None, None], [1.0], []])
def test_groups_without_a_signal_get_zero(rewards: list[float | None]) -> None:
    assert group_normalised(rewards) == [0.0] * len(rewards)


@given(REWARDS)
def test_properties(rewards: list[float | None]) -> None:
    found = group_normalised(rewards)
    assert len(found) == len(rewards)
    known = [(r, a) for r, a in zip(rewards, found, strict=True) if r is not None]
    assert all(a == 0.0 for r, a in zip(rewards, found, strict=True) if r is None)
    assert sum(a for _, a in known) == pytest.approx(0, abs=1e-9)
    if len({r for r, _ in known}) > 1:
        assert sum(a * a for _, a in known) / len(known) == pytest.approx(1, rel=1e-4)
        assert all((a > b) == (r > s) for r, a in known for s, b in known)
    else:
        assert all(a == 0.0 for _, a in known)
