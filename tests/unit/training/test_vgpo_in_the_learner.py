"""VGPO in the learner: factors of updates and groups, in any packing and over ranks, and none for text alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from ral_system.algorithms.visual_similarity import response_factors, response_score, token_factors, visual_weights
from ral_system.config.commands import TrainConfig
from ral_system.config.perception import VgpoConfig
from ral_system.training.plan import plan_updates
from ral_system.training.visual_factors import with_visual_factors
from ral_system.types import Counts, Media, Prompt, Sample, SampleScores, Scores, TrainPlan, UpdatePlan
from tests.unit.training.learners import Start, Watched, equal, texts, three_each
from tests.unit.training.thread_ranks import together

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = ("rollout.log_prob_gate.token=1e9", "algorithm.kl.coefficient=0")
STEPS = ("learner.learning_rate=1e-3", "learner.warmup_updates=0")
BOUNDS = ("algorithm.perception.least_response_factor=0.2", "algorithm.perception.late_share=0.6")
VGPO = ("algorithm=vgpo", *BOUNDS, *SETTINGS)
Config = Callable[..., TrainConfig]


def plan(samples: Sequence[Sample], max_tokens: int = 10_000, deal: str = "groups", updates: int = 2) -> TrainPlan:
    return plan_updates(list(samples), updates=updates, shards=1, max_tokens=max_tokens, deal=deal)  # type: ignore[arg-type]


def by_hand(split: TrainPlan, scores: Scores, settings: VgpoConfig) -> dict[str, tuple[float, np.ndarray]]:
    """Factors of every response with a picture, on its advantage and on its tokens', out of its similarities."""
    weights: dict[str, np.ndarray] = {}
    groups: dict[str, list[str]] = {}
    for update in split.updates:
        seen = [s for shard in update.shards for micro in shard for s in micro if s.prompt.media]
        rows = {s.id: np.float64(scores[s.id].visual_similarity) for s in seen}
        low, high = min(row.min() for row in rows.values()), max(row.max() for row in rows.values())
        weights |= {id: visual_weights(row, low, high, settings) for id, row in rows.items()}
        for sample in seen:
            groups.setdefault(sample.prompt.id, []).append(sample.id)
    found = {}
    for ids in groups.values():
        of_group = response_factors([response_score(weights[id], settings) for id in ids], settings)
        found |= {
            id: (alpha, token_factors(weights[id], settings)) for id, alpha in zip(ids, of_group.tolist(), strict=True)
        }
    return found


@pytest.mark.parametrize("deal", ["groups", "samples"])
def test_factors_are_those_of_the_old_policy_in_any_packing(
    start_rank: Start, rl_samples: list[Sample], make_config: Config, deal: str
) -> None:
    """Neither metrics nor gradients depend on the packing, and no pass is added to GRPO's."""
    samples, outcomes, calls = [*three_each(rl_samples), *texts(three_each(rl_samples, 2))], [], []
    for max_tokens, algorithm in ((10_000, VGPO), (60, VGPO), (10_000, ("algorithm=grpo", *SETTINGS))):
        config = make_config(*algorithm, *STEPS, "model.freeze_vision=true", f"learner.max_tokens={max_tokens}")
        watched, split = Watched(start_rank(config)), plan(samples, max_tokens, deal)
        calls.append(0)

        def count(*_: object) -> None:
            calls[-1] += 1

        watched.rank._engine.policy.register_forward_hook(count)
        scores = watched.rank.score(split)
        settings = config.algorithm.perception
        if isinstance(settings, VgpoConfig):
            expected = by_hand(split, scores, settings)
            assert len(expected) == 12 and len({factor for factor, _ in expected.values()}) > 8
            for sample in samples:
                found = scores[sample.id]
                if sample.id not in expected:
                    assert (found.visual_similarity, found.advantage_factor, found.token_factors) == (None, 1, None)
                    continue
                alpha, of_tokens = expected[sample.id]
                assert found.advantage_factor == pytest.approx(alpha) and found.token_factors is not None
                assert found.token_factors == pytest.approx(of_tokens, abs=1e-6) and np.ptp(of_tokens) > 0.5
        metrics = [watched.rank.update(update, scores, None) for update in split.updates]
        outcomes.append((metrics, watched.gradients, scores))
    assert calls[0] == calls[2]
    (metrics, gradients, scores), (others, other_gradients, other_scores), _ = outcomes
    for id, of_sample in scores.items():
        assert other_scores[id].advantage_factor == pytest.approx(of_sample.advantage_factor, abs=1e-3)
    for k in range(2):
        assert others[k] == pytest.approx(metrics[k], rel=2e-3, abs=5e-6)
        largest = max(g.abs().max().item() for g in gradients[k].values())
        for name, gradient in gradients[k].items():
            assert torch.allclose(other_gradients[k][name], gradient, rtol=5e-3, atol=2e-4 * largest), name


def test_the_gradient_is_that_of_tokens_weighed_by_hand(
    start_rank: Start, rl_samples: list[Sample], make_config: Config
) -> None:
    """On policy a token's gradient is -A · alpha · psi · d log pi, against autograd of each sample alone."""
    samples = [*three_each(rl_samples), *texts(three_each(rl_samples, 1))]
    split = plan(samples, updates=1)
    config = make_config(*VGPO, "algorithm.correction.kind=none")
    watched = Watched(start_rank(config))
    scores = watched.rank.score(split)
    metrics = watched.rank.update(split.updates[0], scores, None)
    rank, tokens, factors = start_rank(config), split.updates[0].counts.tokens, []
    for sample in samples:
        found = scores[sample.id]
        of_tokens = np.ones(len(sample.response_token_ids)) if found.token_factors is None else found.token_factors
        weights = torch.tensor(sample.advantage * found.advantage_factor * of_tokens)
        (-(weights * rank._engine.forward(rank._collate((sample,))).log_probs[0]).sum() / tokens).backward()
        factors += [] if found.token_factors is None else (found.advantage_factor * of_tokens).tolist()
    for name, gradient in watched.gradients[0].items():
        slow = rank._engine.policy.get_parameter(name).grad
        assert slow is not None
        torch.testing.assert_close(gradient, slow, rtol=2e-3, atol=2e-6)
    assert metrics["perception/token_factor"] == pytest.approx(np.mean(factors))
    assert metrics["perception/advantage_factor_max"] == pytest.approx(max(s.advantage_factor for s in scores.values()))
    seen = np.concatenate([s.visual_similarity for s in scores.values() if s.visual_similarity is not None])
    assert metrics["perception/similarity"] == pytest.approx(seen.mean(), rel=1e-4)


def test_at_learning_rate_zero_every_update_is_the_first(
    start_rank: Start, rl_samples: list[Sample], make_config: Config
) -> None:
    watched, one = Watched(start_rank(make_config(*VGPO, "learner.learning_rate=0"))), plan(three_each(rl_samples))
    scores = watched.rank.score(one)
    first, again = (watched.rank.update(one.updates[0], scores, None) for _ in range(2))
    assert first == again and equal(*watched.gradients)


def test_text_alone_trains_as_without(start_rank: Start, rl_samples: list[Sample], make_config: Config) -> None:
    """Bit for bit, in the second update also."""
    split, found = plan(texts(three_each(rl_samples))), []
    for options in (VGPO, ("algorithm=grpo", *SETTINGS)):
        watched = Watched(start_rank(make_config(*options, *STEPS)))
        found.append((watched.train(split), watched.gradients))
    (metrics, gradients), (_, without) = found
    assert all(equal(*pair) for pair in zip(gradients, without, strict=True))
    assert "perception/similarity" not in metrics[1] and metrics[1]["perception/advantage_factor_max"] == 1


def test_every_token_is_compared_at_the_weights_that_made_it(
    start_rank: Start, rl_samples: list[Sample], make_config: Config
) -> None:
    watched = Watched(start_rank(make_config(*VGPO, "learner.learning_rate=0.01", "algorithm.max_staleness=2")))
    rank, samples = watched.rank, three_each(rl_samples)
    rank.publish(0)
    watched.train(plan(samples))
    rank.publish(1)
    mixed = [replace(s, switches=((2, 1),)) for s in samples]
    found, old, new = (rank.score(plan(of)) for of in (mixed, samples, [replace(s, weight_version=1) for s in samples]))
    for s in samples:
        joined, before, after = (scores[s.id].visual_similarity for scores in (found, old, new))
        assert joined is not None and before is not None and after is not None
        np.testing.assert_allclose(joined[:2], before[:2], atol=1e-6)
        np.testing.assert_allclose(joined[2:], after[2:], atol=1e-6)
        assert np.abs(before - after).max() > 1e-4


def test_a_sample_that_was_scored_without_is_refused(
    start_rank: Start, rl_samples: list[Sample], make_config: Config
) -> None:
    split = plan(three_each(rl_samples))
    scores = start_rank(make_config("algorithm=grpo", *SETTINGS)).score(split)
    with pytest.raises(ValueError, match=r"sample train/\d#\d has media, and was scored without its similarity"):
        start_rank(make_config(*VGPO)).update(split.updates[0], scores, None)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_factors_are_of_the_update_and_of_the_group_however_many_ranks_share_them(
    make_config: Config, ranks: int
) -> None:
    """Two groups of four, whose members are in two updates of other ranges; one response to text alone in each."""
    settings = make_config("algorithm=vgpo", *BOUNDS).algorithm.perception
    assert isinstance(settings, VgpoConfig)
    draw, updates, scores = np.random.default_rng(0), [], {}
    for update in range(2):
        samples = []
        for i in range(4):
            prompt = Prompt(f"p{i % 2}", "", "?", "", (Media("0", 28, 28),), (1, 2))
            samples.append(Sample(f"{update}{i}", prompt, tuple(range(3 + i)), index=2 * update + i // 2))
            similarity = draw.uniform(-update, 1, 3 + i).astype(np.float32)
            scores[samples[-1].id] = SampleScores(np.zeros(3 + i, np.float32), visual_similarity=similarity)
        text = Sample(f"text{update}", Prompt("t", "", "?", "", (), (1,)), (7,))
        scores[text.id] = SampleScores(np.zeros(1, np.float32))
        samples.append(text)
        updates.append(UpdatePlan(tuple((tuple(samples[rank::ranks]),) for rank in range(ranks)), Counts(1, 1)))
    split = TrainPlan(tuple(updates))
    mine = [{id: scores[id] for id in split.rank_ids(rank)} for rank in range(ranks)]
    found = together(ranks, lambda rank, shards: with_visual_factors(split, shards, mine[rank], settings))
    assert [set(of_rank) for of_rank in found] == [set(of_rank) for of_rank in mine]
    whole = {id: s for of_rank in found for id, s in of_rank.items()}
    for id, (alpha, of_tokens) in by_hand(split, scores, settings).items():
        assert whole[id].advantage_factor == pytest.approx(alpha)
        assert whole[id].token_factors == pytest.approx(of_tokens, abs=1e-6)
    assert all(whole[f"text{k}"] is scores[f"text{k}"] for k in range(2))
