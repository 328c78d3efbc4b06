"""LASER's reward as a known-bad control: on constructed rollouts it rings the alarms that were made for it."""

from collections.abc import Callable, Mapping
from statistics import correlation, fmean

import numpy as np
import torch

from ral_system.alarms.watch import Alarms
from ral_system.algorithms.advantages import group_advantages
from ral_system.attention.visual_reward import decay_reward
from ral_system.config.commands import TrainConfig
from ral_system.controller.judging import rollout_metrics
from ral_system.rewards.total import Rewards
from ral_system.types import Completion, FinishReason, RewardStatus, Rollout, Verdict
from tests.unit.controller.fakes import prompt

Look = Callable[[np.ndarray], float]
"""What a response is paid for the attention of its rows on pictures."""


def laser(rows: np.ndarray) -> float:
    return decay_reward(torch.from_numpy(rows))


def share(rows: np.ndarray) -> float:
    """Beside as much attention on the system turn in every row."""
    return float((rows / (rows + 0.1)).mean().round(1))


def judged(config: TrainConfig, step: int, look: Look) -> tuple[list[Rollout], Mapping[str, float], np.ndarray]:
    """Eight groups of eight responses with 30 to 90 tokens; in half of the groups all are right.

    How much a response looks, and how that decays, has nothing to do with its length. Also its mean attention.
    """
    draw = np.random.default_rng(step)
    rewards = Rewards(config.reward, config.algorithm.overlong, config.algorithm.kl, lambda _: 100)
    found, attention = [], []
    for number in range(8):
        completions, results = [], []
        for i in range(8):
            length = int(draw.integers(30, 90))
            rows = draw.uniform(0.2, 0.4) * np.linspace(1, draw.uniform(0.6, 0.9), length)
            completion = Completion(
                f"{step}/{number}", i, (7,) * length, (-1.0,) * length, f"answer {i}", FinishReason.STOP, 0
            )
            right = 1.0 if number < 4 else float(i % 2)
            verdict = Verdict(completion.id, {"correctness": right, "format": 1.0}, RewardStatus.OK, "")
            completions.append(completion)
            results.append(rewards.of(prompt(number), completion, verdict, visual=look(rows)))
            attention.append(rows.mean())
        (advantages,) = group_advantages(config.algorithm.advantage, [results], rewards.weights)
        parts = zip(completions, results, advantages, strict=True)
        found += [Rollout(prompt(number), completion, result, a) for completion, result, a in parts]
    return found, rewards.weights, np.array(attention)


def ringing(config: TrainConfig, look: Look) -> set[str]:
    """Alarms that ring after three steps."""
    alarms, metrics = None, {}
    for step in range(3):
        rollouts, weights, _ = judged(config, step, look)
        alarms = alarms or Alarms(config.alarms, weights)
        metrics = {**rollout_metrics(rollouts), "policy/entropy": 1.0, "attention/entropy": 3.0}
        alarms.check(rollouts, metrics)
    rung = {name.removeprefix("alarm/") for name, value in metrics.items() if name.startswith("alarm/") and value}
    return rung - {"length_drift"}  # lengths are drawn, and their mean moves


def test_it_rings_length_correlation_groups_of_one_kind_and_amplification(
    make_config: Callable[..., TrainConfig],
) -> None:
    config = make_config("reward=laser_pays_length", "alarms.consecutive=3")
    assert ringing(config, laser) == {"length_corr", "aux_only", "amplification"}
    bounded = make_config("reward=avar", "alarms.consecutive=3")
    assert "length_corr" not in ringing(bounded, share)
    assert ringing(make_config("alarms.consecutive=3"), laser) == set()


def test_it_goes_with_length_and_not_with_attention(make_config: Callable[..., TrainConfig]) -> None:
    """The audit found +0.53 with length and -0.05 with attention."""
    rollouts, _, attention = judged(make_config("reward=laser_pays_length"), 0, laser)
    paid = [i for i, r in enumerate(rollouts) if r.reward.parts["visual"] > 0]
    values = [rollouts[i].reward.parts["visual"] for i in paid]
    assert correlation(values, [len(rollouts[i].completion.token_ids) for i in paid]) > 0.8
    assert abs(correlation(values, attention[paid].tolist())) < 0.3
    longer = [r.advantage for r in rollouts[:32] if len(r.completion.token_ids) > 60]
    shorter = [r.advantage for r in rollouts[:32] if len(r.completion.token_ids) <= 60]
    assert fmean(longer) > 0.4 > -0.4 > fmean(shorter)  # though all of them are right


def test_a_run_says_what_it_chose(make_config: Callable[..., TrainConfig]) -> None:
    (warning,) = make_config("reward=laser_pays_length").reward.visual.warnings()
    assert warning.startswith("reward.visual.form=laser_pays_length is a known-bad control: it grows with the length")
    (warning,) = make_config("reward=avar").reward.visual.warnings()
    assert warning.startswith("reward.visual.weight=0.3: the policy gradient of this reward changes which tokens are")
    for says in (
        "others report",
        "arXiv 2607.01707",
        "length_drift, length_corr and aux_runaway, and lower the weight",
    ):
        assert says in warning
    assert len(list(make_config("reward.visual.weight=0.1").reward.visual.warnings())) == 1
    assert not list(make_config().reward.visual.warnings())
