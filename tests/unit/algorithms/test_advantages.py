from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral_system.algorithms.advantages import EPSILON, group_advantages, normalised
from ral_system.config.algorithm import Advantage
from ral_system.types import RewardResult, RewardStatus

REWARDS = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.1, 0.9, 1.0])), min_size=1, max_size=12)
WEIGHTS = {"correctness": 0.9, "format": 0.1}
KINDS: tuple[Advantage, ...] = ("grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "gdpo")


def result(reward: float | None, **parts: float) -> RewardResult:
    status = RewardStatus.OK if reward is not None else RewardStatus.TIMEOUT
    return RewardResult("", parts or {"correctness": reward or 0.0}, reward or 0.0, status)


def advantages(kind: Advantage, *groups: list[float | None]) -> list[list[float]]:
    return group_advantages(kind, [[result(r) for r in group] for group in groups], WEIGHTS)


def test_grpo_by_hand() -> None:
    # rewards 1, 0, 0, 0: mean 1/4, population variance (9/16 + 3 · 1/16) / 4 = 3/16, std = √3/4 = 0.4330127
    # A = (3/4) / (√3/4) = √3 for the first, (-1/4) / (√3/4) = -1/√3 for the others (up to the 1e-6 in the divisor)
    (found,) = advantages("grpo", [1.0, 0.0, 0.0, 0.0])
    assert found == pytest.approx([3**0.5, *3 * [-(3**-0.5)]], rel=3e-6)
    assert found[0] == 0.75 / (3**0.5 / 4 + 1e-6)


def test_dr_grpo_and_rloo_by_hand() -> None:
    # mean 1/4; of the others: 0 for the first, 1/3 for the rest
    assert advantages("dr_grpo", [1.0, 0.0, 0.0, 0.0]) == [[0.75, -0.25, -0.25, -0.25]]
    assert advantages("rloo", [1.0, 0.0, 0.0, 0.0]) == [pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])]


def test_reinforce_plus_plus_by_hand() -> None:
    # less the group's mean: 1/2, -1/2 and 1/4, -1/4; over the batch mean 0, variance (2/4 + 2/16) / 4 = 5/32
    std = (5 / 32) ** 0.5
    found = advantages("reinforce_plus_plus", [1.0, 0.0], [0.5, 0.0])
    assert found == [
        pytest.approx([0.5 / std, -0.5 / std], rel=1e-5),
        pytest.approx([0.25 / std, -0.25 / std], rel=1e-5),
    ]


def test_gdpo_by_hand() -> None:
    # correctness (1, 0) and format (0, 1) are ±1 and ∓1 in their group, whatever their size: 0.9 - 0.1 = ±0.8;
    # in the other group format alone differs: ±0.1. Over the batch: mean 0, variance (2 · 0.64 + 2 · 0.01) / 4 = 0.325
    groups = [
        [result(0.9, correctness=1.0, format=0.0), result(0.1, correctness=0.0, format=1.0)],
        [result(1.0, correctness=1.0, format=1.0), result(0.9, correctness=1.0, format=0.0)],
    ]
    std = 0.325**0.5
    first, second = group_advantages("gdpo", groups, WEIGHTS)
    assert first == pytest.approx([0.8 / std, -0.8 / std], rel=1e-5)
    assert second == pytest.approx([0.1 / std, -0.1 / std], rel=1e-5)


def test_gdpo_leaves_parts_out_that_a_completion_lacks() -> None:
    group = [
        result(1.0, correctness=1.0, visual=0.4),
        result(0.0, correctness=0.0, visual=0.2),
        result(1.0, correctness=1.0),
    ]
    (found,) = group_advantages("gdpo", [group], WEIGHTS | {"visual": 0.3})
    correctness, visual = (normalised(values) for values in ([1.0, 0.0, 1.0], [0.4, 0.2, None]))
    raw = [0.9 * c + 0.3 * (v or 0.0) for c, v in zip(correctness, visual, strict=True) if c is not None]
    assert [a > b for a, b in pairwise(found)] == [a > b for a, b in pairwise(raw)]
    assert sum(found) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_completion_without_verdict_is_left_out_and_gets_zero(kind: Advantage) -> None:
    with_some = advantages(kind, [None, 1.0, None, 0.0], [0.0, 1.0])
    without = advantages(kind, [1.0, 0.0], [0.0, 1.0])
    assert with_some == [[0.0, without[0][0], 0.0, without[0][1]], without[1]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "rewards", [[0.1] * 8, [0.9] * 8, [0.3, 0.3, 0.3], [0.1 + 0.2, 0.3], [None, 1.0, None], [None, None], [1.0], []]
)
def test_groups_without_a_signal_get_exactly_zero(kind: Advantage, rewards: list[float | None]) -> None:
    assert advantages(kind, rewards) == [[0.0] * len(rewards)]
    assert advantages(kind, rewards, [1.0, 0.0, 0.3])[0] == [0.0] * len(rewards)  # beside a group that has one


@given(REWARDS)
def test_properties_of_grpo(rewards: list[float | None]) -> None:
    (found,) = advantages("grpo", rewards)
    assert len(found) == len(rewards)
    known = [(r, a) for r, a in zip(rewards, found, strict=True) if r is not None]
    assert all(a == 0.0 for r, a in zip(rewards, found, strict=True) if r is None)
    assert sum(a for _, a in known) == pytest.approx(0, abs=1e-9)
    if len({r for r, _ in known}) > 1:
        assert sum(a * a for _, a in known) / len(known) == pytest.approx(1, rel=1e-4)
        assert all((a > b) == (r > s) for r, a in known for s, b in known)
    else:
        assert all(a == 0.0 for _, a in known)


@given(st.lists(REWARDS, min_size=1, max_size=4), st.sampled_from(KINDS))
def test_every_kind_ranks_a_group_as_its_rewards_do(groups: list[list[float | None]], kind: Advantage) -> None:
    for rewards, found in zip(groups, advantages(kind, *groups), strict=True):
        known = [(r, a) for r, a in zip(rewards, found, strict=True) if r is not None]
        if len(known) > 1:
            assert all((a > b + EPSILON / 10) <= (r > s) for r, a in known for s, b in known)
