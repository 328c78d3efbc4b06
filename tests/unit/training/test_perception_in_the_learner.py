"""PAPO and VPPO in the learner: gradients from the first update on, in any packing, and none for text alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ral_system.config.commands import TrainConfig
from ral_system.training.plan import plan_updates
from ral_system.types import Sample, Scores, TrainPlan
from tests.unit.training.learners import Start, Watched, equal, texts, three_each

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = ("rollout.log_prob_gate.token=1e9", "algorithm.kl.coefficient=0", "algorithm.attention.weight=0")
STEPS = ("learner.learning_rate=1e-3", "learner.warmup_updates=0")
METHODS = {
    "papo": ["algorithm=papo", "algorithm.perception.weight=0.5"],
    "papo, entropy of samples": ["algorithm=papo", "algorithm.perception.entropy_weight=0.2"],
    "papo, exact entropy": [
        *("algorithm=papo", "algorithm.perception.entropy_weight=0.2", "algorithm.perception.entropy=exact")
    ],
    "vppo": ["algorithm=vppo"],
    "vppo, of sequences": ["algorithm=vppo", "algorithm.reduction=sequence_mean", "algorithm.perception.masked=0.9"],
}
each_method = pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
Config = Callable[..., TrainConfig]


def plan(samples: Sequence[Sample], max_tokens: int = 10_000, updates: int = 2) -> TrainPlan:
    return plan_updates(list(samples), updates=updates, shards=1, max_tokens=max_tokens)


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    return torch.cat([(a[name] - b[name]).flatten() for name in a])


def dependence(scores: Scores, sample: Sample) -> np.ndarray:
    found = scores[sample.id]
    assert found.blinded_log_probs is not None
    s = found.blinded_log_probs.astype(np.float64) - found.log_probs
    return np.exp(s) - s - 1


@each_method
def test_packing_and_a_frozen_encoder_change_nothing(
    start_rank: Start, rl_samples: list[Sample], make_config: Config, options: list[str]
) -> None:
    outcomes = []
    for max_tokens, encodes_once in ((10_000, True), (60, True), (1, False)):
        config = make_config(
            *options, *SETTINGS, *STEPS, "model.freeze_vision=true", f"learner.max_tokens={max_tokens}"
        )
        watched = Watched(start_rank(config))
        if not encodes_once:
            watched.rank._vision = None
        outcomes.append((watched.train(plan(three_each(rl_samples), max_tokens)), watched.gradients))
    metrics, gradients = outcomes[0]
    assert metrics[0]["perception/kl"] > 0
    for other_metrics, other_gradients in outcomes[1:]:
        for k in range(2):
            assert other_metrics[k] == pytest.approx(metrics[k], rel=2e-3, abs=5e-6)
            largest = max(g.abs().max().item() for g in gradients[k].values())
            for name, gradient in gradients[k].items():
                assert torch.allclose(other_gradients[k][name], gradient, rtol=5e-3, atol=1e-4 * largest), name


@each_method
def test_at_learning_rate_zero_every_update_is_the_first(
    start_rank: Start, rl_samples: list[Sample], make_config: Config, options: list[str]
) -> None:
    watched = Watched(start_rank(make_config(*options, *SETTINGS, "learner.learning_rate=0")))
    one = plan(three_each(rl_samples))
    scores = watched.rank.score(one)
    first, again = (watched.rank.update(one.updates[0], scores, None) for _ in range(2))
    assert first == again and first["perception/kl"] > 0
    assert equal(*watched.gradients)


@each_method
def test_text_alone_trains_as_without(
    start_rank: Start, rl_samples: list[Sample], make_config: Config, options: list[str]
) -> None:
    """Bit for bit, in the second update also, where the policy is no longer the one that was scored."""
    split, found = plan(texts(three_each(rl_samples))), []
    for chosen in (options, [*options, "algorithm/perception=none"]):
        kept = [o for o in chosen if "perception=none" not in chosen[-1] or not o.startswith("algorithm.perception.")]
        watched = Watched(start_rank(make_config(*kept, *SETTINGS, *STEPS)))
        metrics = watched.train(split)
        found.append((metrics, watched.gradients))
    (metrics, gradients), (_, without) = found
    assert all(equal(*pair) for pair in zip(gradients, without, strict=True))
    assert "perception/kl" not in metrics[1] and metrics[1].get("perception/loss", 0) == 0


def test_papo_changes_the_first_update_in_proportion_to_its_weight(
    start_rank: Start, rl_samples: list[Sample], make_config: Config
) -> None:
    split, found = plan(three_each(rl_samples)), []
    for options in (["algorithm=grpo"], *(["algorithm=papo", f"algorithm.perception.weight={w}"] for w in (0.5, 1.5))):
        watched = Watched(start_rank(make_config(*options, *SETTINGS)))
        found.append((watched.train(split, updates=1)[0], watched.gradients[0]))
    (_, plain), (metrics, one), (_, three) = found
    added, more = apart(one, plain), apart(three, plain)
    assert added.norm() > 1e-3 * torch.cat([g.flatten() for g in plain.values()]).norm()
    torch.testing.assert_close(more, 3 * added, rtol=1e-3, atol=2e-6)
    assert metrics["perception/loss"] == pytest.approx(-0.5 * metrics["perception/kl"])


def test_papo_adds_the_gradient_of_the_mean_dependence(
    start_rank: Start, rl_samples: list[Sample], make_config: Config
) -> None:
    """Against autograd of a pass with each sample alone, text among them: it counts in the mean."""
    samples = [*three_each(rl_samples), *texts(three_each(rl_samples, 1))]
    split = plan(samples, updates=1)
    scores, gradients = {}, []
    for options in (["algorithm=grpo"], ["algorithm=papo", "algorithm.perception.weight=2"]):
        watched = Watched(start_rank(make_config(*options, *SETTINGS)))
        scores = watched.rank.score(split)
        watched.rank.update(split.updates[0], scores, None)
        gradients.append(watched.gradients[0])
    rank = start_rank(make_config("algorithm=papo", *SETTINGS))
    tokens = split.updates[0].counts.tokens
    for sample in samples:
        blinded = scores[sample.id].blinded_log_probs
        if blinded is None:
            continue
        gap = torch.from_numpy(blinded) - rank._engine.forward(rank._collate((sample,))).log_probs[0]
        (-2 * (gap.exp() - gap - 1).sum() / tokens).backward()
    slow = {n: p.grad for n, p in rank._engine.policy.named_parameters() if p.grad is not None}
    assert slow.keys() == gradients[0].keys()
    added = apart(gradients[1], gradients[0])
    expected = torch.cat([slow[name].flatten() for name in gradients[0]])
    assert (added - expected).norm() < 1e-3 * expected.norm()


def test_vppo_weighs_advantages_by_what_pictures_change(
    start_rank: Start, rl_samples: list[Sample], make_config: Config
) -> None:
    """All tokens kept: the gradient is that of advantages multiplied by hand, whose mean factor is 1 in each update."""
    split = plan(three_each(rl_samples))
    vppo = ("algorithm=vppo", "algorithm.perception.kept_tokens=1", "algorithm.perception.least_factor=0.5", *SETTINGS)
    watched = Watched(start_rank(make_config(*vppo)))
    scores = watched.rank.score(split)
    updates = [[s for micro in update.shards[0] for s in micro] for update in split.updates]
    advantages = {}
    for of_update in updates:
        means = np.array([dependence(scores, s).mean() for s in of_update])
        scaled = (means - means.min()) / (means.max() - means.min())
        factors = 0.5 + scaled * 0.5 / scaled.mean()
        assert [scores[s.id].advantage_factor for s in of_update] == pytest.approx(factors.tolist(), rel=1e-4)
        advantages |= {s.id: s.advantage * f for s, f in zip(of_update, factors, strict=True)}
    metrics = watched.rank.update(split.updates[0], scores, None)
    assert metrics["perception/advantage_factor_max"] == pytest.approx(
        max(scores[s.id].advantage_factor for s in updates[0])
    )
    by_hand = plan([replace(s, advantage=float(advantages[s.id])) for s in three_each(rl_samples)])
    plain = Watched(start_rank(make_config("algorithm=grpo", "algorithm/policy_loss=clip_higher", *SETTINGS)))
    plain.train(by_hand, updates=1)
    for name, gradient in plain.gradients[0].items():
        torch.testing.assert_close(watched.gradients[0][name], gradient, rtol=1e-3, atol=1e-6)


def test_vppo_has_a_policy_loss_on_the_tokens_that_pictures_change_most(
    start_rank: Start, rl_samples: list[Sample], make_config: Config
) -> None:
    """On policy a token's loss is -A: the sum over those that are kept, divided by all."""
    samples = [*three_each(rl_samples), *texts(three_each(rl_samples, 1))]
    split = plan(samples, updates=1)
    uncorrected = ("algorithm.perception.least_factor=1", "algorithm.correction.kind=none")
    watched = Watched(start_rank(make_config("algorithm=vppo", *uncorrected, *SETTINGS)))
    scores = watched.rank.score(split)
    metrics = watched.rank.update(split.updates[0], scores, None)
    total = on_kept = on_all = 0.0
    kept = tokens = 0
    for sample in samples:
        length = len(sample.response_token_ids)
        if scores[sample.id].blinded_log_probs is None:
            total -= sample.advantage * length
            continue
        found = dependence(scores, sample)
        count = -(-4 * length // 10)
        total -= sample.advantage * count
        kept, tokens = kept + count, tokens + length
        on_kept, on_all = on_kept + np.sort(found)[-count:].sum(), on_all + found.sum()
    assert metrics["policy/loss"] == pytest.approx(total / split.updates[0].counts.tokens, rel=1e-4)
    assert metrics["perception/kl"] == pytest.approx(on_all / tokens, rel=1e-3)
    assert metrics["perception/kl_kept"] == pytest.approx(on_kept / kept, rel=1e-3)
    assert on_kept / kept > on_all / tokens
    assert metrics["perception/clamped"] == 0


def test_vppo_has_the_gradient_of_the_tokens_and_factors_by_hand(
    start_rank: Start, rl_samples: list[Sample], make_config: Config
) -> None:
    """On policy: -A · factor · d log pi of the tokens that are kept, divided by all, against each sample alone."""
    samples = [*three_each(rl_samples), *texts(three_each(rl_samples, 1))]
    split = plan(samples, updates=1)
    config = make_config("algorithm=vppo", "algorithm.correction.kind=none", *SETTINGS)
    watched = Watched(start_rank(config))
    scores = watched.rank.score(split)
    watched.rank.update(split.updates[0], scores, None)
    rank, tokens = start_rank(config), split.updates[0].counts.tokens
    for sample in samples:
        kept = np.ones(len(sample.response_token_ids))
        if scores[sample.id].blinded_log_probs is not None:
            kept[np.argsort(-dependence(scores, sample), kind="stable")[-(-4 * len(kept) // 10) :]] = 0
        weights = torch.tensor(sample.advantage * scores[sample.id].advantage_factor * kept)
        (-(weights * rank._engine.forward(rank._collate((sample,))).log_probs[0]).sum() / tokens).backward()
    for name, gradient in watched.gradients[0].items():
        slow = rank._engine.policy.get_parameter(name).grad
        assert slow is not None
        torch.testing.assert_close(gradient, slow, rtol=2e-3, atol=2e-6)


def test_a_sample_that_was_scored_without_the_view_is_refused(
    start_rank: Start, rl_samples: list[Sample], make_config: Config
) -> None:
    split = plan(three_each(rl_samples))
    scores = start_rank(make_config("algorithm=grpo", *SETTINGS)).score(split)
    rank = start_rank(make_config("algorithm=papo", *SETTINGS))
    with pytest.raises(ValueError, match=r"sample train/\d#\d has media, and was not scored with a blinded view"):
        rank.update(split.updates[0], scores, None)
