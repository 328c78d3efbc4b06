"""Every preset of the policy loss trains, and how a batch is dealt does not matter to its gradient."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import Collator
from ral_system.config.commands import TrainConfig
from ral_system.media.store import MediaStore
from ral_system.scoring.build import build_policy
from ral_system.types import Sample
from tests.unit.training import learners
from tests.unit.training.learners import PRESETS, Start, Watched, plan

SHARED_CODE = ("clip", "dppo_top_k_kl", "gspo")
"""One loss of each shape: by token, by the most likely tokens, by sequence. The others are long."""
CASES = [pytest.param(name, marks=() if name in SHARED_CODE else pytest.mark.long) for name in PRESETS]
COMMON = ("learner.engine=torch", "learner.world_size=1", "learner.learning_rate=0.01", "learner.warmup_updates=0")


@pytest.fixture(scope="module")
def mismatched(tiny_model: Path, media: MediaStore, rl_samples: list[Sample], make_config) -> list[Sample]:
    policy = build_policy(
        tiny_model, torch.device("cpu"), AttentionRead(), dtype="float32", temperature=make_config().rollout.temperature
    )
    return learners.mismatched(policy, Collator(policy.family, media), rl_samples)


def preset(make_config: Callable[..., TrainConfig], name: str, *overrides: str) -> TrainConfig:
    mismatch = "rollout.log_prob_gate.token=9"
    return make_config(*COMMON, mismatch, f"algorithm/policy_loss={name}", *overrides)


@pytest.mark.parametrize("name", CASES)
def test_accumulation_and_order_do_not_change_the_gradient(
    name: str, start_rank: Start, make_config: Callable[..., TrainConfig], mismatched: list[Sample]
) -> None:
    config = preset(make_config, name, "algorithm.entropy_coefficient=0.1", "algorithm.kl.estimator=k2")
    found = []
    for samples, micro_batch in ((mismatched, 12), (mismatched, 1), (mismatched[::-1], 5)):
        watched = Watched(start_rank(config))
        metrics = watched.train(plan(samples, 1, micro_batch))
        found.append((watched.gradients[0], metrics[0]))
    for gradients, metrics in found[1:]:
        for parameter, whole in found[0][0].items():
            assert (gradients[parameter] - whole).abs().max() <= 1e-5 * whole.abs().max() + 1e-8
        assert metrics["policy/loss"] == pytest.approx(found[0][1]["policy/loss"], rel=3e-5, abs=1e-7)
        assert metrics["correction/weight"] == pytest.approx(found[0][1]["correction/weight"], rel=1e-5)
    assert max(float(g.abs().max()) for g in found[0][0].values()) > 1e-4


@pytest.mark.parametrize("name", CASES)
def test_twice_the_batch_is_the_same_gradient(
    name: str, start_rank: Start, make_config: Callable[..., TrainConfig], mismatched: list[Sample]
) -> None:
    """All counts are scaled, and nothing else is."""
    twice = [*mismatched, *(replace(s, id=f"{s.id}/again") for s in mismatched)]
    found = []
    for samples in (mismatched, twice):
        watched = Watched(start_rank(preset(make_config, name, "algorithm.entropy_coefficient=0.1")))
        metrics = watched.train(plan(samples, 1, 12))
        found.append((watched.gradients[0], metrics[0]["policy/loss"]))
    for parameter, once in found[0][0].items():
        assert (found[1][0][parameter] - once).abs().max() <= 1e-5 * once.abs().max() + 1e-8
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-5, abs=1e-7)


def test_no_two_losses_have_the_same_gradient_off_policy(
    start_rank: Start, make_config: Callable[..., TrainConfig], mismatched: list[Sample]
) -> None:
    second: dict[str, torch.Tensor] = {}
    losses = ["clip", "dppo_binary_tv", "gspo", "cispo", "sapo", "reinforce", "reinforce_plain"]
    for name in losses:
        watched = Watched(start_rank(preset(make_config, name)))
        watched.train(plan(mismatched, 3, 4))
        second[name] = torch.cat([g.flatten() for g in watched.gradients[-1].values()])
    for i, one in enumerate(losses):
        for other in losses[i + 1 :]:
            assert not torch.equal(second[one], second[other]), (one, other)


@pytest.mark.parametrize("name", ["dppo_top_k_tv", "dppo_top_k_kl"])
def test_a_rollout_without_top_tokens_is_named(
    name: str, start_rank: Start, make_config: Callable[..., TrainConfig], rl_samples: list[Sample]
) -> None:
    with pytest.raises(ValueError, match=r"sample .*: the rollout engine returned no top tokens"):
        Watched(start_rank(preset(make_config, name))).train(plan(rl_samples, 1, 4))


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("token_mean", "tokens"), ("sequence_sum", "sequences"), ("fixed_length", "sequences and length")],
)
def test_reductions_differ_by_their_denominators(
    reduction: str, expected: str, start_rank: Start, make_config: Callable[..., TrainConfig], rl_samples: list[Sample]
) -> None:
    length = ["algorithm.fixed_length=7"] if reduction == "fixed_length" else []
    config = make_config(*COMMON, f"algorithm.reduction={reduction}", *length, "algorithm.kl.coefficient=0")
    watched = Watched(start_rank(config))
    watched.train(plan(rl_samples, 1, 12))
    summed = Watched(start_rank(make_config(*COMMON, "algorithm.kl.coefficient=0")))
    summed.train(plan(rl_samples, 1, 12))
    tokens = sum(len(s.response_token_ids) for s in rl_samples)
    factor = {"tokens": 1.0, "sequences": tokens / 12, "sequences and length": tokens / 12 / 7}[expected]
    for parameter, gradient in watched.gradients[0].items():
        assert torch.allclose(
            gradient, summed.gradients[0][parameter] * factor, rtol=1e-4, atol=1e-5 * gradient.abs().max()
        )


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_of_a_response_is_the_sum_over_its_tokens(
    estimator: str, start_rank: Start, make_config: Callable[..., TrainConfig], rl_samples: list[Sample]
) -> None:
    rank = start_rank(make_config(*COMMON, f"algorithm.kl.estimator={estimator}"))
    behaviour = rank.score(plan(rl_samples, 1, len(rl_samples)))
    noise = np.random.default_rng(0)
    reference = {
        id: replace(s, log_probs=s.log_probs + noise.normal(0, 0.3, s.log_probs.shape).astype(np.float32))
        for id, s in behaviour.items()
    }
    found = rank.kl(behaviour, reference)
    for id, scores in behaviour.items():
        d = (reference[id].log_probs - scores.log_probs).astype(np.float64)
        expected = {"k1": -d, "k2": d**2 / 2, "k3": np.exp(d) - d - 1}[estimator].sum()
        assert found[id] == pytest.approx(expected, rel=1e-5)
    assert set(rank.kl(behaviour, behaviour).values()) == {0.0}


def test_a_kl_in_the_reward_is_not_in_the_loss(
    start_rank: Start, make_config: Callable[..., TrainConfig], rl_samples: list[Sample]
) -> None:
    found = []
    for kl in ("{coefficient: 5, place: loss}", "{coefficient: 5, place: reward}", "{coefficient: 0}"):
        watched = Watched(start_rank(make_config(*COMMON, f"algorithm.kl={kl}")))
        watched.train(plan(rl_samples, 2, 4))
        found.append(torch.cat([g.flatten() for g in watched.gradients[-1].values()]))
    assert torch.equal(found[1], found[2]) and not torch.equal(found[0], found[1])
