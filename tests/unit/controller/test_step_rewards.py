"""From verdicts and scores to rewards, groups and advantages, in a step of the loop."""

import pytest

from ral_system.config.commands import TrainConfig
from ral_system.controller.judging import repetition
from ral_system.controller.sampling import has_signal
from ral_system.types import (
    RewardResult,
    RewardStatus,
)
from tests.unit.controller.fakes import FakeFrozenModel, Fakes, G, samples_of, start


def test_advantages_are_of_the_group_and_leave_verdicts_out_that_were_not_reached(config: TrainConfig) -> None:
    roles = Fakes()
    roles.status = {"train/0#1": RewardStatus.TIMEOUT, "train/0#2": RewardStatus.ERROR}
    result = start(config, roles).step()
    advantages = {r.completion.id: r.advantage for r in result.rollouts}
    # group 0 has the rewards 0 and 3: ±1; the others 0, 1, 2, 3: mean 1.5, std √1.25
    assert [advantages[f"train/0#{i}"] for i in range(G)] == pytest.approx([-1, 0, 0, 1], rel=1e-5)
    assert [advantages[f"train/1#{i}"] for i in range(G)] == pytest.approx([-1.3416, -0.4472, 0.4472, 1.3416], abs=1e-4)
    trained = {s.id: s for s in samples_of(roles.trained[0])}
    assert {id: s.advantage for id, s in trained.items()} == advantages
    assert trained["train/1#3"].rollout_log_probs == (-0.5,) * 3
    assert result.metrics["reward/timeouts"] + result.metrics["reward/errors"] == 2


@pytest.mark.parametrize(("model", "scores"), [("policy", "scores 1"), ("reference", "reference 0")])
def test_a_right_answer_that_looks_at_the_picture_is_worth_more(make_config, model: str, scores: str) -> None:
    shape = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    visual = ["reward.visual.weight=2", f"reward.visual.model={model}", "algorithm.kl.coefficient=0.1"]
    roles = Fakes()
    roles.status = {"train/0#1": RewardStatus.TIMEOUT}
    result = start(make_config(*shape, *visual), roles).step()
    assert ("visual_rewards", scores) in roles.calls
    rewards = {r.completion.id: r.reward for r in result.rollouts}
    # completion i is worth i, the odd ones are right, and r_vis is 0.5 for 1 and 2 and undefined for 0 and 3
    assert [rewards[f"train/1#{i}"].total for i in range(G)] == [0, 1 + 2 * 0.5, 2, 3]
    assert rewards["train/1#2"].parts["visual"] == 0
    assert rewards["train/0#1"].total == 0
    assert result.metrics["reward/visual"] == pytest.approx((2 * 0.5 + 3 * 0) / 5)
    # 0, 2, 2, 3: mean 7/4, variance 19/16
    advantages = [r.advantage for r in result.rollouts if r.prompt.id == "train/1"]
    assert advantages == pytest.approx([a / (19 / 16) ** 0.5 for a in (-7 / 4, 1 / 4, 1 / 4, 5 / 4)], rel=1e-5)


@pytest.mark.parametrize(("rounds", "trained", "drawn"), [(1, [0, 1, 2], 3), (2, [1, 4, 0], 5), (3, [1, 4, 5], 6)])
def test_groups_that_are_all_alike_give_way_to_the_next_prompts(
    make_config, rounds: int, trained: list[int], drawn: int
) -> None:
    shape = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    roles = Fakes()
    roles.teachers = [teacher := FakeFrozenModel("teacher", roles)]
    roles.alike = {"train/0", "train/2", "train/3"}  # the second round draws 3 and 4, the third 5
    loop = start(make_config(*shape, f"algorithm.sampling_rounds={rounds}"), roles)
    result = loop.step()
    assert list(dict.fromkeys(r.prompt.id for r in result.rollouts)) == [f"train/{i}" for i in trained]
    assert loop.next_prompt == drawn
    assert result.metrics["sampling/prompts_drawn"] == drawn
    assert result.metrics["sampling/groups_dropped"] == drawn - 3
    assert result.metrics["sampling/rounds"] == rounds
    assert (result.metrics["prompts/first"], result.metrics["prompts/end"]) == (0, drawn)
    assert [ids[0].split("#")[0] for ids in teacher.submitted] == [f"train/{i}" for i in trained]
    assert roles.reference is not None and roles.reference.submitted == teacher.submitted
    roles.calls.clear()
    loop.step()
    assert roles.calls[0][1][0] == f"train/{drawn}"  # no prompt is lost, none is drawn twice


def test_groups_that_differ_by_their_length_alone_have_a_signal(make_config) -> None:
    """Completions have 2 or 3 tokens."""
    shape = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    roles = Fakes()
    roles.alike = {f"train/{i}" for i in range(99)}
    overlong = ["algorithm.overlong={handling: penalty, buffer: 2}", "rollout.max_new_tokens=3"]
    result = start(make_config(*shape, *overlong, "algorithm.sampling_rounds=2"), roles).step()
    assert result.metrics["sampling/groups_dropped"] == 0
    assert result.metrics["sampling/reward"] == 1 - (0.5 + 1) / 2


def test_rounds_end_as_soon_as_the_batch_is_full(make_config) -> None:
    shape = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    roles = Fakes()
    result = start(make_config(*shape, "algorithm.sampling_rounds=5"), roles).step()
    assert (result.metrics["sampling/rounds"], result.metrics["sampling/groups_dropped"]) == (1, 0)


def test_a_signal_is_a_difference_between_verdicts_that_were_reached() -> None:
    def verdict(total: float, status: RewardStatus = RewardStatus.OK) -> RewardResult:
        return RewardResult("", {}, total, status)

    assert has_signal([verdict(0.0), verdict(1.0)])
    assert not has_signal([verdict(1.0), verdict(1.0)])
    assert not has_signal([verdict(1.0), verdict(0.0, RewardStatus.TIMEOUT)])
    assert not has_signal([])


def test_responses_that_were_cut_are_masked_or_punished_on_request(make_config) -> None:
    """Completion i is worth i and has 2 or 3 tokens; completion 0 is cut at the limit."""
    shape = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    limit = ["rollout.max_new_tokens=3", "algorithm.advantage=dr_grpo"]
    masked = start(make_config(*shape, *limit, "algorithm.overlong.handling=mask"), Fakes()).step()
    assert [r.advantage for r in masked.rollouts[:G]] == [0.0, -0.5, 0.5, 1.5]  # 0 would have -1.5; the mean stays 1.5
    punished = start(make_config(*shape, *limit, "algorithm.overlong={handling: penalty, buffer: 2}"), Fakes()).step()
    # 2 tokens: (2 - 1) / 2 off, 3 tokens: 1 off
    assert [r.reward.total for r in punished.rollouts[:G]] == [-0.5, 0.0, 1.5, 2.0]


def test_a_response_cut_by_the_length_of_the_model_is_punished_as_one_cut_by_its_own_limit(make_config) -> None:
    """Prompts have 3 tokens, so a model length of 6 leaves room for 3 of the 4 that a response may have."""
    shape = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    punished = [
        *("algorithm.overlong={handling: penalty, buffer: 2}", "algorithm.advantage=dr_grpo"),
        *("rollout.max_new_tokens=4", "rollout.max_model_len=6"),
    ]
    result = start(make_config(*shape, *punished), Fakes()).step()
    assert [r.reward.total for r in result.rollouts[:G]] == [-0.5, 0.0, 1.5, 2.0]


@pytest.mark.parametrize(
    ("tokens", "share"),
    [((), 0.0), ((1, 2, 3), 0.0), ((1, 2, 3, 4), 0.0), ((1, 1, 1, 1, 1), 0.5), ((1, 2, 1, 2, 1, 2), 1 / 3)],
)
def test_repetition_is_the_share_of_runs_that_were_there_before(tokens: tuple[int, ...], share: float) -> None:
    assert repetition(tokens) == pytest.approx(share)


def test_a_kl_in_the_reward_is_taken_off_what_was_judged(make_config) -> None:
    shape = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    roles = Fakes()
    roles.status = {"train/0#1": RewardStatus.TIMEOUT}
    config = make_config(*shape, "algorithm.kl={coefficient: 2, place: reward}", "algorithm.advantage=dr_grpo")
    result = start(config, roles).step()
    assert ("kl", "scores 1", "reference 0") in roles.calls
    assert result.metrics["reward/kl"] == pytest.approx(0.1 * (3 * 6 - 1) / 11)
    totals = {r.completion.id: r.reward.total for r in result.rollouts}
    # completion i is worth i, less 2 · 0.1 i
    assert [totals[f"train/1#{i}"] for i in range(G)] == pytest.approx([0, 0.8, 1.6, 2.4])
    assert totals["train/0#1"] == 0
    advantages = [r.advantage for r in result.rollouts if r.prompt.id == "train/1"]
    assert advantages == pytest.approx([-1.2, -0.4, 0.4, 1.2])


def test_what_is_not_rewarded_is_not_asked_for(config: TrainConfig) -> None:
    roles = Fakes()
    assert "reward/visual" not in start(config, roles).step().metrics
    assert not [call for call in roles.calls if call[0] in ("visual_rewards", "kl")]
