"""Metrics of a step and of an evaluation, by hand."""

import pytest

from ral_system.controller.judging import missing_verdicts, rollout_metrics
from ral_system.controller.loop import update_metrics
from ral_system.evaluation.greedy import Evaluation, evaluate
from ral_system.types import (
    Completion,
    FinishReason,
    Prompt,
    RewardResult,
    RewardStatus,
    Rollout,
    Sampling,
    Verdict,
)
from tests.unit.controller.fakes import Fakes, prompt
from tests.unit.rewards.settings import reward_config


def rollout(prompt_id: int, index: int, tokens: int, reward: RewardResult, advantage: float, reason: str) -> Rollout:
    completion = Completion(
        f"train/{prompt_id}",
        index,
        (1,) * tokens,
        (0.0,) * tokens,
        "",
        FinishReason(reason),
        weight_version=0,
        first_token_s=0.1 + index,
    )
    return Rollout(prompt(prompt_id), completion, reward, advantage)


def test_rollout_metrics_by_hand() -> None:
    good = RewardResult("", {"correctness": 1.0, "format": 1.0}, 1.0, RewardStatus.OK)
    poor = RewardResult("", {"correctness": 0.0, "format": 1.0}, 0.1, RewardStatus.OK)
    late = RewardResult("", {}, 0.0, RewardStatus.TIMEOUT)
    assert rollout_metrics(
        [
            rollout(0, 0, 3, good, 1.0, "stop"),
            rollout(0, 1, 5, poor, -1.0, "length"),
            rollout(1, 0, 4, poor, 0.0, "stop"),
            rollout(1, 1, 4, late, 0.0, "stop"),
        ]
    ) == pytest.approx(
        {
            "reward/correctness": 1 / 3,
            "reward/format": 1.0,
            "reward/total": 1.2 / 3,
            "reward/timeouts": 1.0,
            "reward/errors": 0.0,
            "rollout/length_mean": 4.0,
            "rollout/length_max": 5.0,
            "rollout/repetition": 0.5 / 4,  # the five tokens are alike: one of two runs of four was there before
            "rollout/truncated": 0.25,
            "rollout/tokens": 16.0,
            "rollout/first_token_s": 0.6,
            "rollout/groups_without_signal": 0.5,
        }
    )


def test_verdicts_that_are_missing_are_told_of_from_half_of_them_on() -> None:
    good = RewardResult("", {"correctness": 1.0}, 1.0, RewardStatus.OK)
    broken = RewardResult("", {}, 0.0, RewardStatus.ERROR, "RuntimeError: oh no")
    of = [rollout(0, i, 1, reward, 0.0, "stop") for i, reward in enumerate((good, broken, good))]
    assert missing_verdicts(of) is None and missing_verdicts([]) is None
    assert missing_verdicts(of[:2]) == (
        "the share of responses without a verdict is 50%; of the first: RuntimeError: oh no"
    )


def test_a_batch_without_any_verdict_has_metrics_too() -> None:
    late = RewardResult("", {}, 0.0, RewardStatus.TIMEOUT)
    found = rollout_metrics([rollout(0, 0, 1, late, 0.0, "stop")])
    assert (found["reward/total"], found["reward/timeouts"], found["rollout/groups_without_signal"]) == (0.0, 1.0, 1.0)


def test_update_metrics_are_means_but_maxima_stay_maxima() -> None:
    names = {
        "policy/loss": 1.0,
        "gate/log_prob_diff_max": -1.0,
        "attention/divergence_positive": 0.1,
        "attention/divergence_negative": 0.2,
    }
    updates = [{name: k * value for name, value in names.items()} for k in range(3)]
    for update, share, factor in zip(updates, (0.0, 0.2, 0.2), (1.0, 30.0, 20.0), strict=True):
        update |= {"attention/gradient_share": share, "attention/gradient_factor": factor}
    assert update_metrics(updates) == pytest.approx(
        {
            "policy/loss": 1.0,
            "gate/log_prob_diff_max": 0.0,
            "attention/divergence_positive": 0.1,
            "attention/divergence_negative": 0.2,
            "attention/divergence_positive_last": 0.2,
            "attention/divergence_negative_last": 0.4,
            "attention/gradient_share": 0.4 / 3,
            "attention/gradient_share_update_1": 0.0,
            "attention/gradient_share_update_2": 0.2,
            "attention/gradient_share_update_3": 0.2,
            "attention/gradient_factor": 17.0,
            "attention/gradient_factor_update_1": 1.0,
            "attention/gradient_factor_update_2": 30.0,
            "attention/gradient_factor_update_3": 20.0,
        }
    )


def test_evaluation_is_greedy_and_counts_what_was_not_judged_as_wrong() -> None:
    roles = Fakes()
    roles.loaded_version = 3
    wrong = {"held_out/1#0": {"correctness": 0.0, "format": 1.0}}

    def judge(completion: Completion) -> Verdict:
        if completion.id == "held_out/2#0":
            return Verdict(completion.id, {}, RewardStatus.TIMEOUT)
        return Verdict(completion.id, wrong.get(completion.id, {"correctness": 1.0, "format": 1.0}), RewardStatus.OK)

    roles.judge = judge  # type: ignore[method-assign]
    prompts = [Prompt(f"held_out/{i}", ("a", "b")[i % 2], "q", "a", (), (1,)) for i in range(4)]
    found = evaluate(roles.generate, roles, reward_config(), prompts, max_new_tokens=11)  # type: ignore[arg-type]
    assert roles.calls[0] == ("generate", [p.id for p in prompts], Sampling(1, 0.0, 11, 0))
    assert [r.prompt.id for r in found.rollouts] == [p.id for p in prompts]
    assert all(r.completion.prompt_id == r.prompt.id and r.advantage == 0.0 for r in found.rollouts)
    assert found.metrics() == {
        "eval/accuracy": 0.5,
        "eval/format_rate": 0.75,
        "eval/reward": pytest.approx((1 + 0.1 + 0 + 1) / 4),
        "eval/questions": 4.0,
        "eval/length_mean": 2.0,
        "eval/unjudged": 1.0,
        "eval/accuracy/a": 0.5,
        "eval/accuracy/b": 0.5,
    }


def test_an_evaluation_reports_the_signals_of_packages() -> None:
    parts = {"correctness": 1.0, "format": 1.0, "brevity": 0.5}
    judged = rollout(0, 0, 1, RewardResult("", parts, 1.0, RewardStatus.OK), 0.0, "stop")
    late = rollout(0, 1, 1, RewardResult("", {}, 0.0, RewardStatus.TIMEOUT), 0.0, "stop")
    found = Evaluation((judged, late)).metrics()
    assert (found["eval/signal/brevity"], found["eval/reward"]) == (0.25, 0.5)
    assert [name for name in found if name.startswith("eval/signal/")] == ["eval/signal/brevity"]
