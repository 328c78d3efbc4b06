"""The visual-anchored part of a reward: who earns it, and what it adds."""

from collections.abc import Callable

import pytest

from ral_system.config.reward import RewardConfig
from ral_system.config.run import RunConfig
from ral_system.rewards.visual import with_visual_reward
from ral_system.types import RewardResult, RewardStatus


@pytest.fixture
def config(make_config: Callable[..., RunConfig]) -> RewardConfig:
    return make_config("reward=avar").reward


def verdict(correctness: float, total: float, status: RewardStatus = RewardStatus.OK) -> RewardResult:
    parts = {"correctness": correctness, "format": 1.0} if status is RewardStatus.OK else {}
    return RewardResult("a#0", parts, total, status)


def test_a_right_answer_earns_it(config: RewardConfig) -> None:
    found = with_visual_reward(config, verdict(1.0, 1.1), 0.8)  # 1 + 0.1 · 1 + 0.3 · 0.8
    assert found.total == pytest.approx(1.34)
    assert found.parts == {"correctness": 1.0, "format": 1.0, "visual": 0.8}


def test_a_wrong_one_does_not_however_much_it_looks(config: RewardConfig) -> None:
    found = with_visual_reward(config, verdict(0.0, 0.1), 0.99)
    assert (found.total, found.parts["visual"]) == (0.1, 0.0)


@pytest.mark.parametrize("status", [RewardStatus.TIMEOUT, RewardStatus.ERROR])
def test_a_verdict_that_was_not_reached_stays_as_it_is(config: RewardConfig, status: RewardStatus) -> None:
    given = verdict(0.0, 0.0, status)
    assert with_visual_reward(config, given, 0.8) is given


def test_where_it_is_undefined_the_part_is_absent(config: RewardConfig) -> None:
    given = verdict(1.0, 1.1)
    assert with_visual_reward(config, given, None) is given
