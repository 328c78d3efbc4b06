"""Objectives with a gradient at the old policy, in the learner: from the first update on, in any packing."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from ral_system.training.plan import plan_updates
from ral_system.types import Credit, Sample, TrainPlan
from tests.unit.training.learners import Start, Watched, equal

pytestmark = pytest.mark.usefixtures("one_thread")

OUTCOMES = (0.6, -0.4, -0.2)
SETTINGS = ("rollout.log_prob_gate.token=1e9", "algorithm.kl.coefficient=0", "algorithm.attention.weight=5")
OBJECTIVES = {
    "credit": ["algorithm=attention_credit"],
    "credit, of the prompt": ["algorithm=attention_credit", "algorithm.attention.keys=prompt"],
    "credit, of heads and layers": [
        *("algorithm=attention_credit", "algorithm.attention.heads=each", "algorithm.attention.layers=all")
    ],
    "credit alone": ["algorithm=attention_credit", "algorithm.attention.objective.proximal=0"],
    "group anchor": ["algorithm=group_anchor"],
    "group anchor, of answers": ["algorithm=group_anchor", "algorithm.attention.rows=answer"],
    "sharpening": ["algorithm=sharpening"],
    "sharpening, of heads and layers": [
        *("algorithm=sharpening", "algorithm.attention.heads=each", "algorithm.attention.layers=all"),
        *("algorithm.attention.keys=all", "algorithm.attention.reduction=sequence_mean"),
    ],
}
each_objective = pytest.mark.parametrize("options", OBJECTIVES.values(), ids=OBJECTIVES)


def groups(samples: Sequence[Sample], outcomes: Sequence[float | None] = OUTCOMES, count: int = 2) -> list[Sample]:
    """Three responses to each of `count` questions."""
    found = []
    for i, sample in enumerate(samples[:count]):
        for n, outcome in enumerate(outcomes):
            ids, log_probs = sample.response_token_ids[n:], sample.rollout_log_probs[n:]
            credit = Credit(outcome or 0.0, tuple(outcomes), tuple(outcomes))
            found.append(Sample(f"{i}#{n}", sample.prompt, ids, log_probs, outcome or 0.0, index=n, credit=credit))
    return found


def plan(samples: Sequence[Sample], max_tokens: int = 10_000, deal: str = "groups") -> TrainPlan:
    return plan_updates(list(samples), updates=2, shards=1, max_tokens=max_tokens, deal=deal)  # type: ignore[arg-type]


@each_objective
def test_the_first_update_has_a_gradient_whatever_the_packing(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, options: list[str]
) -> None:
    config = make_config(*options, *SETTINGS, "learner.learning_rate=1e-3", "learner.warmup_updates=0")
    plain = make_config("algorithm=grpo", *SETTINGS[:2])
    samples = groups(rl_samples)
    outcomes = []
    for settings, max_tokens in ((config, 10_000), (config, 1), (plain, 10_000)):
        watched = Watched(start_rank(settings))
        outcomes.append((watched.train(plan(samples, max_tokens)), watched.gradients))
    (metrics, gradients), (other_metrics, other_gradients), (_, token_gradients) = outcomes
    assert metrics[0]["attention/divergence"] == 0 != metrics[0]["attention/loss"]
    changed = {n for n, g in gradients[0].items() if not torch.equal(g, token_gradients[0][n])}
    assert "model.model.language_model.layers.1.self_attn.q_proj.weight" in changed
    assert "model.lm_head.weight" not in changed
    for k in range(2):
        assert other_metrics[k] == pytest.approx(metrics[k], rel=1e-3, abs=2e-6)
        largest = max(g.abs().max().item() for g in gradients[k].values())
        for name, gradient in gradients[k].items():
            assert torch.allclose(other_gradients[k][name], gradient, rtol=5e-3, atol=1e-4 * largest), name


@each_objective
def test_at_learning_rate_zero_every_update_is_the_first(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, options: list[str]
) -> None:
    config = make_config(*options, *SETTINGS, "learner.learning_rate=0")
    one = plan(groups(rl_samples, count=1) + groups(rl_samples, count=2)[3:])
    watched = Watched(start_rank(config))
    scores = watched.rank.score(one)
    first, again = (watched.rank.update(one.updates[0], scores, None) for _ in range(2))
    assert first["attention/loss"] == again["attention/loss"] != 0
    assert first["attention/divergence"] == again["attention/divergence"] == 0
    assert equal(*watched.gradients)


@each_objective
@pytest.mark.parametrize("outcomes", [(0.0, 0.0, 0.0), (0.0, None, None)], ids=["alike", "one verdict"])
def test_a_group_without_signal_has_none(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, options: list[str], outcomes: tuple
) -> None:
    watched = Watched(start_rank(make_config(*options, *SETTINGS)))
    metrics = watched.train(plan(groups(rl_samples, outcomes)), updates=1)
    assert metrics[0]["attention/loss"] == pytest.approx(0, abs=1e-9)
    assert all(g.abs().max() < 1e-8 for g in watched.gradients[0].values())


def test_members_of_a_group_may_be_in_different_updates(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    """Their loss at the weights of the rollout stays the same."""
    config = make_config("algorithm=attention_credit", *SETTINGS, "learner.learning_rate=0")
    found = []
    for deal in ("groups", "samples"):
        metrics = Watched(start_rank(config)).train(plan(groups(rl_samples), deal=deal))
        found.append(sum(m["attention/loss"] for m in metrics))
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_the_contrast_is_reported_of_every_run(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    for options in (["algorithm=grpo"], ["algorithm=ral"], ["algorithm=attention_credit"]):
        metrics = Watched(start_rank(make_config(*options, SETTINGS[0]))).train(plan(groups(rl_samples)))
        assert 0 < metrics[0]["attention/contrast"] < 3
    alike = [replace(s, credit=Credit(0.0, *[(0.0, 0.0, 0.0)] * 2)) for s in groups(rl_samples)]
    metrics = Watched(start_rank(make_config("algorithm=grpo", SETTINGS[0]))).train(plan(alike))
    assert "attention/contrast" not in metrics[0]


def test_the_share_of_the_gradient_is_held(start_rank: Start, rl_samples: list[Sample], make_config: Callable) -> None:
    """From above and from below, as if the factor were the weight."""
    settings = ("algorithm=attention_credit", *SETTINGS[:2], "algorithm.attention.gradient_share_every=1")

    def first_update(*options: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        watched = Watched(start_rank(make_config(*options)))
        return watched.train(plan(groups(rl_samples)), updates=1)[0], watched.gradients[0]

    share = first_update(*settings)[0]["attention/gradient_share"]
    for target in (share / 2, (1 + share) / 2):
        held, gradients = first_update(*settings[:3], f"algorithm.attention.target_gradient_share={target}")
        factor = held["attention/gradient_factor"]
        assert held["attention/gradient_share"] == pytest.approx(target)
        assert factor == pytest.approx(target / (1 - target) / (share / (1 - share)), rel=1e-4)
        _, weighted = first_update(*settings, f"algorithm.attention.weight={factor}")
        assert all(torch.allclose(weighted[name], g, rtol=1e-3, atol=1e-6) for name, g in gradients.items())
