"""What the attention objective gets to know of rewards, and the controls that take it away."""

from dataclasses import replace

import pytest

from ral_system.controller.credit import attention_credit
from ral_system.types import Completion, FinishReason, Prompt, RewardResult, RewardStatus, Rollout


def rollouts(*rewards: float | None, prompt: str = "a") -> list[Rollout]:
    found = []
    for i, reward in enumerate(rewards):
        status = RewardStatus.TIMEOUT if reward is None else RewardStatus.OK
        completion = Completion(prompt, i, (1,), (0.0,), "", FinishReason.STOP, 0)
        result = RewardResult(completion.id, {}, reward or 0.0, status)
        found.append(Rollout(Prompt(prompt, "", "?", "", (), ()), completion, result, 10.0 * (i - 1)))
    return found


def test_outcomes_are_rewards_minus_their_mean_and_not_normalised(make_config) -> None:
    group = rollouts(1.0, 0.0, None, 0.5)
    found = attention_credit([*reversed(group), *rollouts(1.0, 1.0, prompt="b")], make_config().algorithm, 0)
    assert {id: credit.advantage for id, credit in found.items() if id.startswith("a")} == {
        r.completion.id: r.advantage for r in group
    }
    assert all(found[f"a#{i}"].outcomes == pytest.approx((0.5, -0.5, None, 0.0)) for i in range(4))
    assert found["b#1"].outcomes == (0.0, 0.0)
    assert [found[f"a#{i}"].reward for i in range(4)] == [1.0, 0.0, None, 0.5]


def test_permuted_advantages_are_the_groups_own_in_another_order(make_config) -> None:
    settings = make_config("algorithm.attention.advantages=permuted").algorithm
    group = rollouts(1.0, 0.0, None, 0.5, 0.25, 0.75)
    orders = []
    for seed in range(4):
        found = attention_credit(group, settings, seed)
        assert found == attention_credit(list(reversed(group)), settings, seed)
        advantages = [found[r.completion.id].advantage for r in group]
        assert sorted(advantages) == [r.advantage for r in group]
        plain = attention_credit(group, make_config().algorithm, seed)["a#0"].outcomes
        assert found["a#0"].judged == plain
        assert (found["a#0"].outcomes[2], advantages[2]) == (None, group[2].advantage)  # who does not count stays
        moved = [found["a#0"].outcomes.index(outcome) for outcome in plain]
        assert [advantages[to] for to in moved] == [r.advantage for r in group]  # both in the same order
        rewards = [found[r.completion.id].reward for r in group]
        assert [rewards[to] for to in moved] == [1.0, 0.0, None, 0.5, 0.25, 0.75]
        orders.append(tuple(advantages))
    assert len(set(orders)) > 2
    other = [replace(r, prompt=replace(r.prompt, id="b")) for r in group]
    assert [attention_credit(other, settings, 0)[r.completion.id].advantage for r in group] != list(orders[0])


@pytest.mark.parametrize(("kind", "expected"), [("absolute", [10, 0, 10]), ("negative_absolute", [-10, 0, -10])])
def test_an_anchor_or_a_repeller_for_everyone(make_config, kind: str, expected: list[float]) -> None:
    settings = make_config(f"algorithm.attention.advantages={kind}").algorithm
    found = attention_credit(rollouts(1.0, 0.0, 0.5), settings, 0)
    assert [credit.advantage for credit in found.values()] == expected


def test_over_long_responses_that_are_masked_do_not_count(make_config) -> None:
    group = rollouts(1.0, 0.0, 0.5)
    group[0] = replace(group[0], completion=replace(group[0].completion, finish_reason=FinishReason.LENGTH))
    for handling, expected in (("mask", (None, -0.25, 0.25)), ("none", (0.5, -0.5, 0.0))):
        algorithm = make_config(f"algorithm.overlong.handling={handling}").algorithm
        assert attention_credit(group, algorithm, 0)["a#1"].outcomes == pytest.approx(expected)
