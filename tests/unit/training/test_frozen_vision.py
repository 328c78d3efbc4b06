"""A frozen vision encoder sees each medium of a step once; what is trained does not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ral_system.config.commands import TrainConfig
from ral_system.training.learner_rank import LearnerRank
from ral_system.training.plan import plan_updates
from ral_system.types import Sample
from tests.unit.training.learners import Start, Watched

SETTINGS = (
    "algorithm.attention={weight: 5.0, gradient_share_every: 1}",
    "rollout.log_prob_gate.token=1e9",
    "learner.max_tokens=90",
)


def groups(samples: Sequence[Sample]) -> list[Sample]:
    """Two responses to each of six questions; the last question is about the first one's picture."""
    found = []
    for i, sample in enumerate(samples[:6]):
        prompt = replace(samples[0].prompt, id="again") if i == 5 else sample.prompt
        for n, ids in enumerate((sample.response_token_ids, sample.response_token_ids[1:])):
            advantage = (0.7, -1.1)[n]
            log_probs = sample.rollout_log_probs[n:]
            found.append(Sample(f"{i}#{n}", prompt, ids, log_probs, advantage))
    return found


def encoded_patches(rank: LearnerRank) -> list[int]:
    """The patches of each call of the encoder, from now on."""
    found: list[int] = []
    policy = rank._engine.policy
    encoder = policy.family.vision_encoder(policy.model)
    encoder.register_forward_pre_hook(lambda _, inputs: found.append(len(inputs[0])))
    return found


def test_each_medium_is_encoded_once_a_step(
    start_rank: Start, make_config: Callable[..., TrainConfig], rl_samples: list[Sample]
) -> None:
    samples = groups(rl_samples)
    rank = start_rank(make_config(*SETTINGS, "model.freeze_vision=true"))
    plan = plan_updates(samples, updates=3, shards=1, max_tokens=90)
    assert len(plan.rank_samples(0)) > 3
    patches = encoded_patches(rank)
    distinct = {medium for sample in samples for medium in sample.prompt.media}
    expected = sum(medium.width_px * medium.height_px // 14**2 for medium in distinct)
    for step in range(2):
        scores = rank.score(plan)
        for update in plan.updates:
            assert "attention/gradient_share" in rank.update(update, scores, scores)
        assert sum(patches) == expected * (step + 1)
    assert len(distinct) == 5


def test_one_rank_makes_as_many_passes_as_the_one_with_the_most_media(
    start_rank: Start, make_config: Callable[..., TrainConfig], rl_samples: list[Sample]
) -> None:
    rank = start_rank(make_config(*SETTINGS, "model.freeze_vision=true", "learner.max_tokens=10"))
    assert rank._vision is not None
    patches = encoded_patches(rank)
    shards = [[tuple(rl_samples[:1])], [(sample,) for sample in rl_samples[1:5]]]
    rank._vision.encode(shards, 0)
    most = len(rank._vision._passes(shards[1]))
    assert most > 1 and patches[1:] == [4] * (most - 1)  # black ones
    assert set(rank._vision.encoded) == set(rl_samples[0].prompt.media)


def test_what_is_trained_does_not_change(
    start_rank: Start, make_config: Callable[..., TrainConfig], rl_samples: list[Sample]
) -> None:
    samples, found = groups(rl_samples), []
    for frozen in (True, False):
        watched = Watched(start_rank(make_config(*SETTINGS, "model.freeze_vision=true")))
        if not frozen:  # the encoder then sees media in every pass
            watched.rank._vision = None
        plan = plan_updates(samples, updates=2, shards=1, max_tokens=90)
        found.append((watched.train(plan), watched.gradients, watched.weights()))
    (metrics, gradients, weights), (slow_metrics, slow_gradients, slow_weights) = found
    for one, other in zip(metrics, slow_metrics, strict=True):
        assert all(abs(one[name] - value) <= 1e-4 * max(1e-2, abs(value)) for name, value in other.items())
    assert not any("visual" in name for name in gradients[0])
    for one, other in zip(gradients, slow_gradients, strict=True):
        assert one.keys() == other.keys()
        largest = max(float(g.abs().max()) for g in other.values())
        assert all(torch.allclose(g, other[name], rtol=1e-3, atol=1e-5 * largest) for name, g in one.items())
    assert all((w - slow_weights[name]).norm() <= 1e-3 * w.norm() + 1e-6 for name, w in weights.items())


def test_the_comparison_before_rl_sees_the_pictures_and_changes_nothing_after_it(
    start_rank: Start, make_config: Callable[..., TrainConfig], rl_samples: list[Sample]
) -> None:
    metrics = []
    for compares in (True, False):
        rank = start_rank(make_config(*SETTINGS, "model.freeze_vision=true"))
        before, after = rl_samples[:3], groups(rl_samples)[6:]
        if compares:
            assert 0 <= rank.check_log_probs(plan_updates(before, updates=1, shards=1, max_tokens=90)) < 1e-5
        plan = plan_updates(after, updates=1, shards=1, max_tokens=90)
        scores = rank.score(plan)
        metrics.append(rank.update(plan.updates[0], scores, scores))
    assert metrics[0] == metrics[1]
