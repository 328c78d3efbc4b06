"""The learner on the tiny model with the torch engine: what must not depend on batching, and what must be exactly 0."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ral_system.data.collate import Collator
from ral_system.data.media import MediaStore
from ral_system.errors import GateError
from ral_system.models.loading import load_model, load_processor
from ral_system.sync.manifest import build_manifest
from ral_system.training.learner_rank import LearnerRank, build_policy, combine_metrics
from ral_system.training.plan import plan_updates
from ral_system.types import Counts, Sample, TrainPlan

pytestmark = pytest.mark.usefixtures("one_thread")

Start = Callable[..., LearnerRank]


class Watched:
    """A learner whose gradients are kept when it steps."""

    def __init__(self, rank: LearnerRank) -> None:
        self.rank = rank
        self.gradients: list[dict[str, Tensor]] = []
        step = rank._engine.step

        def recorded() -> float:
            named = rank._engine.policy.named_parameters()
            self.gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})
            return step()

        rank._engine.step = recorded  # type: ignore[method-assign]

    def train(self, plan: TrainPlan, updates: int | None = None) -> list[dict[str, float]]:
        scores = self.rank.score(plan.rank_samples(0))
        reference = self.rank.score(plan.rank_samples(0))
        return [self.rank.update(u, scores, reference) for u in plan.updates[:updates]]

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.rank._engine.policy.named_parameters()}


def plan(samples: list[Sample], updates: int, micro_batch: int) -> TrainPlan:
    return plan_updates(samples, updates=updates, world_size=1, micro_batch=micro_batch)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- batching ---


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_micro_batches_change_neither_loss_nor_gradients_nor_weights(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, reduction: str
) -> None:
    config = make_config(
        "algorithm.updates_per_step=2",
        "algorithm.attention.weight=5",
        "algorithm.attention.max_gradient_share=0.05",
        f"algorithm.attention.reduction={reduction}",
        "learner.learning_rate=1e-3",
        "learner.warmup_updates=0",
    )
    outcomes = []
    for micro_batch in (6, 3, 1):
        watched = Watched(start_rank(config))
        before = watched.weights()
        metrics = watched.train(plan(rl_samples, 2, micro_batch))
        outcomes.append((metrics, watched.gradients, watched.weights()))
    metrics, gradients, after = outcomes[0]
    assert metrics[1]["attention/divergence_positive"] > 1e-6  # the attention loss took part in the second update
    assert 0 < metrics[1]["attention/gradient_factor"] < 1
    moved = torch.cat([(after[n] - before[n]).flatten() for n in after]).norm()
    for other_metrics, other_gradients, other_after in outcomes[1:]:
        for k in range(2):
            assert other_metrics[k] == pytest.approx(metrics[k], rel=1e-4, abs=2e-6)
            assert other_metrics[k]["learner/grad_norm"] == pytest.approx(metrics[k]["learner/grad_norm"], rel=1e-5)
            largest = max(g.abs().max().item() for g in gradients[k].values())
            for name, gradient in gradients[k].items():
                assert torch.allclose(other_gradients[k][name], gradient, rtol=1e-3, atol=1e-5 * largest), name
        apart = torch.cat([(after[n] - other_after[n]).flatten() for n in after]).norm()
        assert apart < 2e-3 * moved  # Adam turns rounding of near-zero gradients into steps


def test_supervised_micro_batches_change_nothing(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    found = []
    for micro_batch in (12, 5, 1):
        watched = Watched(start_rank(make_config(), "sft"))
        metrics = watched.rank.fit(plan(rl_samples, 1, micro_batch).updates[0])
        found.append((metrics, watched.gradients[0]))
    for metrics, gradients in found[1:]:
        assert metrics == pytest.approx(found[0][0], rel=1e-5)
        largest = max(g.abs().max().item() for g in gradients.values())
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, found[0][1][name], rtol=1e-3, atol=1e-5 * largest), name


def test_gradient_checkpointing_changes_nothing(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    found = []
    for on in (False, True):
        config = make_config(
            f"learner.gradient_checkpointing={on}",
            "algorithm.attention.weight=5",
            "algorithm.attention.gradient_share_every=0",  # measuring runs the layer once more
            "learner.learning_rate=1e-3",
        )
        watched = Watched(start_rank(config))
        forwards: list[bool] = []
        layer = watched.rank._engine.policy.model.get_decoder().layers[-1]
        layer.self_attn.q_proj.register_forward_hook(lambda *_, seen=forwards: seen.append(torch.is_grad_enabled()))
        found.append((watched.train(plan(rl_samples, 2, 4)), watched.gradients, forwards))
    (metrics, gradients, once), (other_metrics, other_gradients, twice) = found
    assert sum(twice) == 2 * sum(once) > 0  # layers did run again in the backward pass
    assert other_metrics[0]["attention/divergence_positive"] == 0.0 < other_metrics[1]["attention/divergence_positive"]
    for k in range(2):
        assert other_metrics[k] == pytest.approx(metrics[k], rel=1e-5, abs=1e-6)
        for name, gradient in gradients[k].items():
            assert torch.allclose(other_gradients[k][name], gradient, rtol=1e-4, atol=1e-6), name


# --- exact zeros ---


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


def test_the_first_update_is_bitwise_that_of_grpo_and_the_second_is_not(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    runs = []
    for weight in (0, 5):
        config = make_config(
            f"algorithm.attention.weight={weight}", "learner.learning_rate=1e-3", "learner.warmup_updates=0"
        )
        watched = Watched(start_rank(config))
        after_first: dict[str, Tensor] = {}
        split = plan(rl_samples, 2, 4)
        scores = watched.rank.score(split.rank_samples(0))
        watched.rank.update(split.updates[0], scores, None)
        after_first = watched.weights()
        metrics = watched.rank.update(split.updates[1], scores, None)
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
        "algorithm.kl.coefficient=0",
        "algorithm.attention.weight=5",
        *(f"algorithm.attention.{option}" for option in options),
    )
    outcomes = []
    for micro_batch in (6, 2):
        watched = Watched(start_rank(config))
        outcomes.append((watched.train(plan(rl_samples, 2, micro_batch)), watched.gradients))
    (metrics, gradients), (other_metrics, other_gradients) = outcomes
    assert metrics[0]["attention/divergence_positive"] == metrics[0]["attention/loss"] == 0
    assert metrics[1]["attention/divergence_positive"] > 1e-7
    assert metrics[1]["attention/loss"] != 0
    for k in range(2):
        assert other_metrics[k] == pytest.approx(metrics[k], rel=1e-3, abs=2e-6)
        largest = max(g.abs().max().item() for g in gradients[k].values())
        for name, gradient in gradients[k].items():
            assert torch.allclose(other_gradients[k][name], gradient, rtol=5e-3, atol=1e-4 * largest), name


@pytest.mark.parametrize("anchor", ["old", "reference", "ema"])
def test_what_each_anchor_does_to_the_first_update(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, anchor: str
) -> None:
    """Of the first batch all anchors are the policy itself; of the second, the old one alone still is."""
    runs = []
    for weight in (0, 5):
        config = make_config(
            f"algorithm.attention.weight={weight}",
            f"algorithm.attention.anchor={anchor if weight else 'old'}",
            "algorithm.attention.ema_decay=0.5",
            "learner.learning_rate=1e-3",
            "learner.warmup_updates=0",
            "rollout.max_log_prob_difference=1e9",  # the samples are those of the first weights
        )
        watched, frozen = Watched(start_rank(config)), start_rank(config)
        split = plan(rl_samples, 1, 4)
        for batch in range(2):
            scores, reference = (rank.score(split.rank_samples(0)) for rank in (watched.rank, frozen))
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
            f"algorithm.attention.anchor={anchor}",
            "algorithm.attention.ema_decay=0",
            "learner.learning_rate=1e-3",
            "rollout.max_log_prob_difference=1e9",
        )
        watched = Watched(start_rank(config))
        runs.append(([watched.train(plan(rl_samples, 2, 4)) for _ in range(2)], watched.weights()))
    assert runs[0][0] == runs[1][0]
    assert equal(runs[0][1], runs[1][1])


def test_advantage_zero_trains_nothing(start_rank: Start, rl_samples: list[Sample], make_config: Callable) -> None:
    config = make_config("algorithm.kl.coefficient=0", "algorithm.attention.weight=5")
    watched = Watched(start_rank(config))
    before = watched.weights()
    watched.train(plan([replace(s, advantage=0.0) for s in rl_samples], 2, 4))
    assert equal(watched.weights(), before)


# --- direction ---


def test_an_update_makes_good_samples_likelier_and_bad_ones_rarer(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    rank = start_rank(make_config("learner.warmup_updates=0", "algorithm.kl.coefficient=0"))
    split = plan(rl_samples, 1, 12)
    before = rank.score(split.rank_samples(0))
    rank.update(split.updates[0], before, None)
    loosened = rank._config.rollout.model_copy(update={"max_log_prob_difference": 1e9})
    rank._config = rank._config.model_copy(update={"rollout": loosened})
    after = rank.score(split.rank_samples(0))
    gain = sum(s.advantage * float((after[s.id].log_probs - before[s.id].log_probs).sum()) for s in rl_samples)
    assert gain > 0.01


# --- gate, freezing, saving ---


@pytest.mark.parametrize("wrong", [lambda x: x - 3e-4, lambda x: float("nan")])
def test_rollout_log_probs_that_do_not_fit_raise_with_the_samples_id(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, wrong: Callable[[float], float]
) -> None:
    rank = start_rank(make_config())
    rank.score((tuple(rl_samples),))  # as they are, they pass
    spoilt = list(rl_samples[7].rollout_log_probs)
    spoilt[2] = wrong(spoilt[2])
    samples = [*rl_samples[:7], replace(rl_samples[7], rollout_log_probs=tuple(spoilt)), *rl_samples[8:]]
    with pytest.raises(GateError, match=r"sample train/7: rollout and learner log-probs differ by (0.0003|nan)"):
        rank.score((tuple(samples),))


def test_a_frozen_vision_tower_stays_as_it_is_bit_by_bit(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    changed = {}
    for freeze in (True, False):
        config = make_config(f"model.freeze_vision={freeze}", "learner.learning_rate=1e-3")
        watched = Watched(start_rank(config))
        before = watched.weights()
        watched.train(plan(rl_samples, 2, 6))
        after = watched.weights()
        changed[freeze] = {n for n in after if not torch.equal(before[n], after[n])}
    vision = {n for n in changed[False] if ".visual." in n}
    assert len(vision) > 10
    assert changed[True] == changed[False] - vision


@pytest.mark.parametrize("anchor", ["old", "ema"])
def test_saving_and_loading_continues_bit_by_bit(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, tmp_path: Path, anchor: str
) -> None:
    config = make_config(
        "learner.learning_rate=1e-3",
        "algorithm.kl.coefficient=0",
        "learner.warmup_updates=8",
        f"algorithm.attention.anchor={anchor}",
        "algorithm.attention.ema_decay=0.5",
        "rollout.max_log_prob_difference=1e9",
    )
    split = plan(rl_samples, 4, 3)
    straight = Watched(start_rank(config))
    scores = straight.rank.score(split.rank_samples(0))
    for update in split.updates[:2]:
        straight.rank.update(update, scores, None)
    straight.rank.save(tmp_path / "learner")
    scores = straight.rank.score(split.rank_samples(0))
    expected = [straight.rank.update(update, scores, None) for update in split.updates[2:]]

    resumed = Watched(start_rank(config))
    resumed.rank.load(tmp_path / "learner")
    scores = resumed.rank.score(split.rank_samples(0))
    assert [resumed.rank.update(update, scores, None) for update in split.updates[2:]] == expected
    assert equal(resumed.weights(), straight.weights())
    assert expected[1]["learner/learning_rate"] == pytest.approx(1e-3 * 4 / 8)


def test_saving_changes_nothing(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, tmp_path: Path
) -> None:
    split = plan(rl_samples, 2, 6)
    watched = Watched(start_rank(make_config()))
    scores = watched.rank.score(split.rank_samples(0))
    watched.rank.save(tmp_path / "before_any_update")
    first = watched.rank.update(split.updates[0], scores, None)
    resumed = Watched(start_rank(make_config()))
    resumed.rank.load(tmp_path / "before_any_update")
    assert resumed.rank.update(split.updates[0], scores, None) == first


def test_published_weights_are_the_models_own(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, tiny_model: Path, tmp_path: Path
) -> None:
    rank = start_rank(make_config("learner.learning_rate=1e-3"))
    start = rank.publish(0)
    assert start is not None
    original = load_model(tiny_model, dtype="float32").state_dict()
    assert start.manifest == build_manifest(0, {n: t.numpy() for n, t in original.items()})
    Watched(rank).train(plan(rl_samples, 2, 6))
    trained = rank.publish(1)
    assert trained is not None and trained.manifest.version == 1
    assert all(not np.array_equal(trained.arrays[n], a) for n, a in start.arrays.items() if "q_proj" in n)
    assert start.manifest == build_manifest(0, start.arrays)  # what was published does not follow training

    rank.save_model(tmp_path / "model")
    again = load_model(tmp_path / "model", dtype="float32").state_dict()
    assert build_manifest(1, {n: t.numpy() for n, t in again.items()}) == trained.manifest
    assert load_processor(tmp_path / "model").tokenizer.get_vocab() == load_processor(tiny_model).tokenizer.get_vocab()


def test_warmup_and_the_reported_rate(start_rank: Start, rl_samples: list[Sample], make_config: Callable) -> None:
    rank = start_rank(make_config("sft.learning_rate=1e-3", "sft.warmup_updates=3"), "sft")
    update = plan(rl_samples, 1, 12).updates[0]
    rates = [rank.fit(update)["learner/learning_rate"] for _ in range(5)]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3, 1e-3])


def test_gradients_are_clipped_by_their_norm(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    # Adam's step ignores the gradient's scale, its second moment does not: v = (1 - beta2) g² after one update
    config = make_config("learner.max_grad_norm=0.01")
    watched = Watched(start_rank(config, "sft"))
    norm = watched.rank.fit(plan(rl_samples, 1, 12).updates[0])["learner/grad_norm"]
    assert norm > 0.1  # reported before clipping
    optimizer = watched.rank._engine._optimizer  # type: ignore[attr-defined]
    clipped = sum(state["exp_avg_sq"].sum().item() for state in optimizer.state.values()) / 0.01
    assert clipped**0.5 == pytest.approx(0.01, rel=1e-3)


# --- validate and look ---


def test_validation_is_a_fit_without_the_update(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    watched = Watched(start_rank(make_config(), "sft"))
    before = watched.weights()
    update = plan(rl_samples, 1, 5).updates[0]
    held_out = watched.rank.validate(update)
    assert equal(watched.weights(), before)
    fitted = watched.rank.fit(update)
    assert held_out == {
        "held_out/loss": fitted["supervised/loss"],
        "held_out/token_accuracy": fitted["supervised/token_accuracy"],
    }
    # an untrained model is near chance: ln of the vocabulary without the four banned tokens
    assert held_out["held_out/loss"] == pytest.approx(np.log(len(watched.rank._processor.tokenizer) - 4), rel=0.3)


def test_looking_averages_the_answers_rows_over_the_picture(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, tiny_model: Path, media: MediaStore
) -> None:
    found = start_rank(make_config()).look(rl_samples[:3])
    model = build_policy(make_config(), tiny_model, torch.device("cpu"))
    processor = load_processor(tiny_model)
    for i, sample in enumerate(rl_samples[:3]):
        with torch.no_grad():
            output = model(Collator(processor, media.open)((sample,)), with_attention=True)
        words = [processor.tokenizer.decode([t]) for t in sample.response_token_ids]
        rows = range(words.index("<answer>") + 1, words.index("</answer>"))
        keys = [k for k, t in enumerate(sample.prompt.token_ids) if t == processor.image_token_id]
        assert output.attention is not None
        policy = torch.cat(list(output.attention[0].policies(0)))
        side = 2 + i % 3
        expected = [[0.0] * side for _ in range(side)]
        for n, key in enumerate(keys):
            expected[n // side][n % side] = float(np.mean([policy[r, key].item() for r in rows]))
        (mass,) = found[sample.id].maps
        assert mass.shape == (1, side, side)
        assert np.allclose(mass[0], expected, atol=1e-6)
        assert 0 < mass.sum() < 1


def test_sums_become_means_per_token_and_by_their_own_weights() -> None:
    weighted = {
        "attention/divergence_positive": (3.0, 4.0),
        "attention/divergence_negative": (0.0, 0.0),  # no bad sample in the update
        "attention/image_1_mass": (0.0, 0.0),  # no second picture
        "attention/visual_mass": (1.0, 8.0),
    }
    counts = Counts(tokens=12, sequences=3)
    assert combine_metrics({"policy/loss": 6.0}, weighted, {"gate/log_prob_diff_max": 0.5}, counts) == {
        "gate/log_prob_diff_max": 0.5,
        "policy/loss": 0.5,
        "attention/divergence_positive": 0.75,
        "attention/divergence_negative": 0.0,
        "attention/visual_mass": 0.125,
    }
