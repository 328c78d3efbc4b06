"""A reward is the weighted sum of its signals."""

from collections.abc import Callable
from typing import Any

import pytest

from ral_system.config.commands import TrainConfig
from ral_system.rewards.total import Rewards, overlong_penalty
from ral_system.types import Completion, FinishReason, Prompt, RewardResult, RewardStatus, Verdict

PROMPT = Prompt("p", "k", "q", "a", (), (1, 2, 3))


@pytest.fixture
def rewards(make_config: Callable[..., TrainConfig]) -> Callable[..., Rewards]:
    def made(*overrides: str) -> Rewards:
        config = make_config(*overrides)
        a = config.algorithm
        return Rewards(config.reward, a.overlong, a.kl, config.rollout.response_limit)

    return made


def verdict(correctness: float, status: RewardStatus = RewardStatus.OK) -> Verdict:
    ok = status is RewardStatus.OK
    return Verdict("p#0", {"correctness": correctness, "format": 1.0} if ok else {}, status, "" if ok else "late")


def reward(of: Rewards, given: Verdict, tokens: int = 4, **measured: Any) -> RewardResult:
    completion = Completion("p", 0, (1,) * tokens, (0.0,) * tokens, "", FinishReason.STOP, 0)
    return of.of(PROMPT, completion, given, **measured)


def test_it_is_the_papers_weighted_sum(rewards: Callable[..., Rewards]) -> None:
    found = reward(rewards(), verdict(0.5))
    assert found == RewardResult("p#0", {"correctness": 0.5, "format": 1.0}, 0.9 * 0.5 + 0.1, RewardStatus.OK)
    assert reward(rewards("reward.correctness=2", "reward.format=0"), verdict(0.5)).total == 1.0


def test_a_right_answer_that_looks_at_the_picture_is_worth_more(rewards: Callable[..., Rewards]) -> None:
    avar = rewards("reward=avar")
    found = reward(avar, verdict(1.0), visual=0.8)
    assert found.total == pytest.approx(1 + 0.1 * 1 + 0.3 * 0.8)
    assert found.parts == {"correctness": 1.0, "format": 1.0, "visual": 0.8}
    wrong = reward(avar, verdict(0.0), visual=0.99)
    assert (wrong.total, wrong.parts["visual"]) == (0.1, 0.0)
    assert "visual" not in reward(avar, verdict(1.0)).parts  # where r_vis is undefined
    assert avar.weights == {"correctness": 1.0, "format": 0.1, "visual": 0.3}


def test_lasers_reward_is_for_right_answers_in_the_format(rewards: Callable[..., Rewards]) -> None:
    laser = rewards("reward=laser_pays_length")
    found = reward(laser, verdict(1.0), visual=2.0)
    assert found.total == pytest.approx(0.9 + 0.1 + 0.05 * 2) and found.parts["visual"] == 2.0
    unformatted = Verdict("p#0", {"correctness": 1.0, "format": 0.0}, RewardStatus.OK, "")
    assert reward(laser, unformatted, visual=2.0).parts["visual"] == 0
    assert reward(laser, verdict(0.0), visual=2.0).parts["visual"] == 0
    assert reward(rewards("reward=avar"), unformatted, visual=0.5).parts["visual"] == 0.5


def test_length_and_kl_are_taken_off(rewards: Callable[..., Rewards]) -> None:
    both = rewards(
        "algorithm.overlong={handling: penalty, buffer: 4}",
        "rollout.max_new_tokens=10",
        "algorithm.fixed_length=10",
        "algorithm.kl={coefficient: 0.5, place: reward}",
    )
    found = reward(both, verdict(1.0), tokens=7, kl=0.2)
    assert found.parts == {"correctness": 1.0, "format": 1.0, "overlong": 0.25, "kl": 0.2}
    assert found.total == pytest.approx(1.0 - 0.25 - 0.5 * 0.2)
    assert "kl" not in reward(both, verdict(1.0), tokens=7).parts  # before it is measured
    assert "kl" not in reward(rewards("algorithm.kl={coefficient: 0.5, place: loss}"), verdict(1.0), kl=0.2).parts


@pytest.mark.parametrize(
    ("overrides", "visual", "kl"),
    [
        ((), False, False),
        (("reward=avar",), True, False),
        (("algorithm.kl={coefficient: 0.5, place: reward}",), False, True),
        (("algorithm.kl={coefficient: 0.5, place: loss}",), False, False),
    ],
)
def test_signals_name_what_must_be_measured_for_them(
    rewards: Callable[..., Rewards], overrides: tuple[str, ...], visual: bool, kl: bool
) -> None:
    found = rewards(*overrides)
    assert (found.need("visual"), found.need("kl")) == (visual, kl)


@pytest.mark.parametrize("status", [RewardStatus.TIMEOUT, RewardStatus.ERROR])
def test_without_a_verdict_there_is_no_reward(rewards: Callable[..., Rewards], status: RewardStatus) -> None:
    found = reward(rewards("reward=avar"), verdict(1.0, status), visual=0.8)
    assert found == RewardResult("p#0", {}, 0.0, status, "late")


@pytest.mark.parametrize(
    ("length", "limit", "expected"),
    [(6, 10, 0.0), (7, 10, 0.25), (10, 10, 1.0), (0, 3, 0.0), (1, 3, 1 / 3), (3, 3, 1.0)],
)
def test_the_penalty_grows_over_the_last_tokens_or_over_all_there_are(length: int, limit: int, expected: float) -> None:
    assert overlong_penalty(length, limit=limit, buffer=4) == pytest.approx(expected)
