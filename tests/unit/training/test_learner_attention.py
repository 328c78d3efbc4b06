"""The attention term in the learner: where it is exactly 0, every way to read attention, anchors, share and cap."""

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ral_system.attention.record import Target
from ral_system.types import Sample
from tests.unit.training.learners import Start, Watched, equal, plan, three_each

pytestmark = pytest.mark.usefixtures("one_thread")


def test_at_learning_rate_zero_the_attention_divergence_is_exactly_zero(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    config = make_config("learner.learning_rate=0", "algorithm.attention.weight=5", "algorithm.updates_per_step=4")
    for metrics in Watched(start_rank(config)).train(plan(rl_samples, 3, 3)):
        assert metrics["attention/loss"] == 0.0
        assert metrics["attention/divergence_positive"] == 0.0
        assert metrics["attention/divergence_negative"] == 0.0
        assert metrics["policy/approximate_kl_old"] == 0.0
        assert metrics["policy/kl"] == 0.0
        assert metrics["policy/clip_fraction"] == 0.0
        assert metrics["learner/grad_norm"] > 0.01


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 0)], ids=["two updates", "two passes"])
def test_the_first_update_is_bitwise_that_of_grpo_and_the_second_is_not(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, order: tuple[int, int, int]
) -> None:
    updates, first, second = order
    runs = []
    for weight in (0, 5):
        config = make_config(
            f"algorithm.attention.weight={weight}", "learner.learning_rate=1e-3", "learner.warmup_updates=0"
        )
        watched = Watched(start_rank(config))
        after_first: dict[str, Tensor] = {}
        split = plan(rl_samples, updates, 4)
        scores = watched.rank.score(split)
        watched.rank.update(split.updates[first], scores, None)
        after_first = watched.weights()
        metrics = watched.rank.update(split.updates[second], scores, None)
        runs.append((watched.gradients, after_first, watched.weights(), metrics))
    (grpo, grpo_first, grpo_second, _), (ral, ral_first, ral_second, metrics) = runs
    assert equal(grpo[0], ral[0])
    assert equal(grpo_first, ral_first)
    assert metrics["attention/divergence_positive"] > 0
    assert not equal(grpo[1], ral[1])
    assert not equal(grpo_second, ral_second)
    changed = {name for name in ral[1] if not torch.equal(ral[1][name], grpo[1][name])}
    assert "model.model.language_model.layers.1.self_attn.q_proj.weight" in changed
    # the last layer's values and everything above it have no part in where its rows look
    assert "model.model.language_model.layers.1.self_attn.v_proj.weight" not in changed
    assert "model.lm_head.weight" not in changed


OPTIONS = [
    ["divergence=forward_kl"],
    ["divergence=reverse_kl"],
    ["divergence=tv"],
    ["divergence=hellinger"],
    ["layers=all"],
    ["layers=[0]"],
    ["heads=each"],
    ["rows=predicting"],
    ["rows=answer"],
    ["rows=instruction"],
    ["keys=visual"],
    ["keys=prompt"],
    ["keys=no_sinks"],
    ["record=top_k", "top_k=4"],
    ["backend=dense"],
    ["layers=all", "heads=each", "rows=answer", "keys=visual", "record=top_k", "top_k=2", "divergence=tv"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options))
def test_every_way_to_read_attention_starts_at_zero_acts_and_does_not_depend_on_batching(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, options: list[str]
) -> None:
    config = make_config(
        "learner.learning_rate=1e-3",
        "learner.warmup_updates=0",
        "rollout.log_prob_gate.token=1e9",  # parts of responses have other log-probs
        "algorithm.kl.coefficient=0",
        "algorithm.attention.weight=5",
        *(f"algorithm.attention.{option}" for option in options),
    )
    groups, outcomes = three_each(rl_samples), []
    for micro_batch in (6, 2):  # whole groups, and cut up
        watched = Watched(start_rank(config))
        outcomes.append((watched.train(plan(groups, 2, micro_batch)), watched.gradients))
    (metrics, gradients), (other_metrics, other_gradients) = outcomes
    rounding = 1e-15 if "record=top_k" in options else 0  # the kept keys' rest, over the group's keys together
    assert (
        abs(metrics[0]["attention/divergence_positive"]) <= rounding and abs(metrics[0]["attention/loss"]) <= rounding
    )
    assert metrics[1]["attention/divergence_positive"] > 1e-7
    assert metrics[1]["attention/loss"] != 0
    for k in range(2):
        assert other_metrics[k] == pytest.approx(metrics[k], rel=1e-3, abs=2e-6)
        largest = max(g.abs().max().item() for g in gradients[k].values())
        for name, gradient in gradients[k].items():
            assert torch.allclose(other_gradients[k][name], gradient, rtol=5e-3, atol=1e-4 * largest), name


def anchored(anchor: str, decay: float) -> list[str]:
    """Overrides; only a moving average has a decay."""
    given = f"algorithm.attention.anchor={anchor}"
    return [given, f"algorithm.attention.ema_decay={decay}"] if anchor == "ema" else [given]


@pytest.mark.parametrize("anchor", ["old", "reference", "ema"])
def test_what_each_anchor_does_to_the_first_update(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, anchor: str
) -> None:
    """On the first batch all anchors are the policy itself; on the second, only the old one still is."""
    runs = []
    for weight in (0, 5):
        config = make_config(
            f"algorithm.attention.weight={weight}",
            *anchored(anchor if weight else "old", decay=0.5),
            "learner.learning_rate=1e-3",
            "learner.warmup_updates=0",
            "rollout.log_prob_gate.token=1e9",  # the samples are those of the first weights
        )
        watched, frozen = Watched(start_rank(config)), start_rank(config)
        split = plan(rl_samples, 1, 4)
        for batch in range(2):
            scores, reference = (rank.score(split) for rank in (watched.rank, frozen))
            metrics = watched.rank.update(split.updates[0], scores, reference)
            moved = max(metrics["attention/divergence_positive"], metrics["attention/divergence_negative"])
            assert (moved > 1e-7) == (batch == 1 and anchor != "old" and weight > 0)
        runs.append(watched.gradients)
    (grpo_first, grpo_second), (first, second) = runs
    assert equal(grpo_first, first)
    assert equal(grpo_second, second) == (anchor == "old")


def second_update(
    start_rank: Start, make_config: Callable, samples: list[Sample], *overrides: str
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics and gradients of the second of two updates."""
    config = make_config("learner.learning_rate=1e-3", "learner.warmup_updates=0", *overrides)
    watched = Watched(start_rank(config))
    return watched.train(plan(samples, 2, 6))[1], watched.gradients[1]


def test_the_share_of_the_gradient_is_measured_without_touching_it(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    weighted = [f"algorithm.attention.weight={w}" for w in (5, 10)]
    unmeasured, plain = second_update(
        start_rank, make_config, rl_samples, weighted[0], "algorithm.attention.gradient_share_every=0"
    )
    measured, same = second_update(start_rank, make_config, rl_samples, weighted[0])
    doubled, _ = second_update(start_rank, make_config, rl_samples, weighted[1])
    assert "attention/gradient_share" not in unmeasured
    assert equal(plain, same)
    one, two = measured["attention/gradient_share"], doubled["attention/gradient_share"]
    assert 0 < one < two < 1
    assert two / (1 - two) == pytest.approx(2 * one / (1 - one), rel=1e-4)  # odds are linear in the weight
    assert measured["attention/gradient_share_max"] == one


def test_a_small_share_of_ral_is_held_too(start_rank: Start, rl_samples: list[Sample], make_config: Callable) -> None:
    """At a small learning rate its gradient is below 1e-4 of the token loss's, and above rounding errors."""
    config = ("learner.learning_rate=2e-7", "learner.warmup_updates=0", "algorithm.kl.coefficient=0")
    shares = []
    for option in ("gradient_share_every=1", "target_gradient_share=0.2"):
        watched = Watched(start_rank(make_config(*config, f"algorithm.attention.{option}")))
        shares.append([m["attention/gradient_share"] for m in watched.train(plan(rl_samples, 3, 6))])
    free, held = shares
    assert free[0] == 0 == held[0]
    assert all(1e-6 < share < 1e-4 for share in free[1:])
    assert held[1:] == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize(("every", "sums"), [(0, [1, 1]), (1, [2, 2])])
def test_an_update_sums_over_ranks_once_and_once_more_where_its_share_is_due(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, every: int, sums: list[int]
) -> None:
    """However many micro-batches and metrics there are. The engine's own sums of gradients are not counted."""
    rank = start_rank(
        make_config(
            "algorithm.attention.weight=5",
            f"algorithm.attention.gradient_share_every={every}",
            "algorithm.kl.coefficient=0.1",
        )
    )
    split, counted = plan(rl_samples, 2, 2), []
    scores, reference = rank.score(split), rank.score(split)
    total = rank._engine.sum_over_ranks
    rank._engine.sum_over_ranks = lambda values: counted.append(len(values)) or total(values)  # type: ignore
    found = []
    for update in split.updates:
        assert len(update.shards[0]) > 1
        rank.update(update, scores, reference)
        found.append(len(counted))
        counted.clear()
    assert found == sums


def test_a_capped_term_is_scaled_to_its_share_and_no_smaller_one_is(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    def run(weight: float, *overrides: str) -> tuple[dict[str, float], dict[str, Tensor]]:
        return second_update(start_rank, make_config, rl_samples, f"algorithm.attention.weight={weight}", *overrides)

    _, grpo = run(0)
    free, full = run(5)
    share = free["attention/gradient_share"]
    tight, capped = run(5, f"algorithm.attention.max_gradient_share={share / 2}")
    loose, uncapped = run(5, f"algorithm.attention.max_gradient_share={share * 1.01}")
    assert (loose["attention/gradient_factor"], equal(uncapped, full)) == (1.0, True)
    factor = tight["attention/gradient_factor"]
    assert tight["attention/gradient_share"] == pytest.approx(share / 2, rel=1e-5)
    odds = share / (1 - share)
    assert factor == pytest.approx((share / 2) / (1 - share / 2) / odds, rel=1e-5)
    name = "model.model.language_model.layers.1.self_attn.q_proj.weight"
    assert torch.allclose(capped[name] - grpo[name], factor * (full[name] - grpo[name]), rtol=1e-3, atol=1e-6)


def test_an_average_that_keeps_nothing_is_the_old_policy(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    runs = []
    for anchor in ("old", "ema"):
        config = make_config(
            *anchored(anchor, decay=0),
            "learner.learning_rate=1e-3",
            "rollout.log_prob_gate.token=1e9",
        )
        watched = Watched(start_rank(config))
        runs.append(([watched.train(plan(rl_samples, 2, 4)) for _ in range(2)], watched.weights()))
    assert runs[0][0] == runs[1][0]
    assert equal(runs[0][1], runs[1][1])


def test_no_micro_batch_keeps_its_graph_until_the_update_ends(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    """A graph holds the batch's records and keys; at most the one that is being trained on may be alive."""
    watched = Watched(start_rank(make_config("algorithm.attention.weight=5")))
    alive: list[int] = []
    targets: list[weakref.ref[Target]] = []
    made = Target.__init__

    def counted(self: Target, *given: object) -> None:
        alive.append(sum(ref() is not None for ref in targets))
        targets.append(weakref.ref(self))
        made(self, *given)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Target, "__init__", counted)
        watched.train(plan(rl_samples, 1, 1))
    assert len(alive) >= 12
    assert max(alive) <= 1
