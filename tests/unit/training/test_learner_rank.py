"""The learner on the tiny model with the torch engine."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import Collator
from ral_system.errors import GateError
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family, load_model
from ral_system.scoring.build import build_policy
from ral_system.training.metric_sums import combine_metrics
from ral_system.types import UNREAD, Counts, Sample
from tests.offered import manifest_of, offered, read_whole
from tests.unit.training.learners import Start, Watched, equal, plan

pytestmark = pytest.mark.usefixtures("one_thread")


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
    before = rank.score(split)
    rank.update(split.updates[0], before, None)
    rank._config = make_config("rollout.log_prob_gate.token=1e9")
    after = rank.score(split)
    gain = sum(s.advantage * float((after[s.id].log_probs - before[s.id].log_probs).sum()) for s in rl_samples)
    assert gain > 0.01


# --- gate, freezing, saving ---


@pytest.mark.parametrize("wrong", [lambda x: x - 3e-4, lambda x: float("nan")])
def test_rollout_log_probs_that_do_not_fit_raise_with_the_samples_id(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, wrong: Callable[[float], float]
) -> None:
    rank = start_rank(make_config())
    rank.score(plan(rl_samples, 1, len(rl_samples)))  # as they are, they pass
    spoilt = list(rl_samples[7].rollout_log_probs)
    spoilt[2] = wrong(spoilt[2])
    samples = [*rl_samples[:7], replace(rl_samples[7], rollout_log_probs=tuple(spoilt)), *rl_samples[8:]]
    with pytest.raises(GateError, match=r"sample train/7: rollout and learner log-probs differ by (0.0003|nan)"):
        rank.score(plan(samples, 1, len(samples)))


def test_a_cold_start_is_gated_without_its_autocast(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    rank = start_rank(make_config("sft.autocast=bfloat16"), "sft")
    learner = rank._engine.policy
    split = plan(rl_samples, 1, 4)
    rough = learner(rank._collate(tuple(rl_samples[:1]))).log_probs[0].tolist()
    assert max(abs(a - b) for a, b in zip(rough, rl_samples[0].rollout_log_probs, strict=True)) > 1e-4
    rank.work()
    assert 0 <= rank.check_log_probs(split) < 1e-5
    assert (learner.autocast, rank.work().encoder_passes) == (torch.bfloat16, 0)
    spoilt = replace(rl_samples[7], rollout_log_probs=tuple(x + 3e-4 for x in rl_samples[7].rollout_log_probs))
    with pytest.raises(GateError, match=r"sample train/7: rollout and learner log-probs differ by 0.0003"):
        rank.check_log_probs(plan([*rl_samples[:7], spoilt, *rl_samples[8:]], 1, 4))
    assert learner.autocast == torch.bfloat16


def test_a_token_that_the_engines_disagree_on_is_left_out_and_counted(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    """The rollout engine's value does not matter: the gradient is that of another absurd value."""
    gate = "rollout.log_prob_gate={token: 1e-3, outliers: 0.01}"
    found = []
    for absurd in (-90.0, -40.0):
        log_probs = (absurd, *rl_samples[0].rollout_log_probs[1:])
        samples = [replace(rl_samples[0], rollout_log_probs=log_probs), *rl_samples[1:]]
        watched = Watched(start_rank(make_config(gate, "algorithm.attention.weight=0", "algorithm.kl.coefficient=0")))
        (metrics,) = watched.train(plan(samples, 1, 4))
        tokens = sum(len(s.response_token_ids) for s in samples)
        assert metrics["gate/log_prob_outlier_share"] == pytest.approx(1 / tokens)
        assert metrics["gate/log_prob_diff_p999"] < 1e-3 < metrics["gate/log_prob_diff_max"]
        found.append(watched.gradients[0])
    assert equal(*found)
    as_sampled = Watched(start_rank(make_config(gate, "algorithm.attention.weight=0", "algorithm.kl.coefficient=0")))
    as_sampled.train(plan(rl_samples, 1, 4))
    assert not equal(found[0], as_sampled.gradients[0])


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
        *(["algorithm.attention.ema_decay=0.5"] if anchor == "ema" else []),
        "rollout.log_prob_gate.token=1e9",
    )
    split = plan(rl_samples, 4, 3)
    straight = Watched(start_rank(config))
    scores = straight.rank.score(split)
    for update in split.updates[:2]:
        straight.rank.update(update, scores, None)
    straight.rank.save(tmp_path / "learner")
    scores = straight.rank.score(split)
    expected = [straight.rank.update(update, scores, None) for update in split.updates[2:]]

    resumed = Watched(start_rank(config))
    resumed.rank.load(tmp_path / "learner")
    scores = resumed.rank.score(split)
    assert [resumed.rank.update(update, scores, None) for update in split.updates[2:]] == expected
    assert equal(resumed.weights(), straight.weights())
    assert expected[1]["learner/learning_rate"] == pytest.approx(1e-3 * 4 / 8)


def test_saving_changes_nothing(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, tmp_path: Path
) -> None:
    split = plan(rl_samples, 2, 6)
    watched = Watched(start_rank(make_config()))
    scores = watched.rank.score(split)
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
    names = [name for name in start.tensors if "q_proj" in name]
    read, kept = rank.offer(start, names)
    assert read == {name: start.tensors[name] for name in names}
    original = load_model(tiny_model, dtype="float32").state_dict()
    assert start == manifest_of(0, original)
    Watched(rank).train(plan(rl_samples, 2, 6))
    unread = rank.publish(1)
    assert unread is not None and unread.version == 1
    assert {digest.checksum for digest in unread.tensors.values()} == {UNREAD}
    trained = read_whole(rank, 1)
    assert trained is not None and rank.offer(unread, tuple(start.tensors))[0] == trained.tensors
    assert all(trained.tensors[name] != start.tensors[name] for name in names)
    assert kept is not None and [*kept.names] == names  # what was offered does not follow training
    assert offered(0, {name: original[name] for name in names}).arrays.keys() == kept.arrays.keys()  # type: ignore[attr-defined]
    assert all(np.array_equal(array, original[name]) for name, array in kept.arrays.items())  # type: ignore[attr-defined]

    rank.save_model(tmp_path / "model")
    again = load_model(tmp_path / "model", dtype="float32").state_dict()
    assert manifest_of(1, again) == trained
    assert load_family(tmp_path / "model").tokenizer.get_vocab() == load_family(tiny_model).tokenizer.get_vocab()


def test_warmup_and_the_reported_rate(start_rank: Start, rl_samples: list[Sample], make_config: Callable) -> None:
    rank = start_rank(make_config("sft.learning_rate=1e-3", "sft.warmup_updates=3"), "sft")
    update = plan(rl_samples, 1, 12).updates[0]
    rates = [rank.fit(update)["learner/learning_rate"] for _ in range(5)]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3, 1e-3])


def test_a_continued_stage_follows_the_schedule_of_its_new_length(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, tmp_path: Path
) -> None:
    update = plan(rl_samples, 1, 12).updates[0]
    falling = ("sft.learning_rate=1e-3", "sft.warmup_updates=0", "sft.schedule={shape: linear, end: 0}")
    rank = start_rank(make_config(*falling, "sft.max_steps=3"), "sft")
    rates = [rank.fit(update)["learner/learning_rate"] for _ in range(3)]
    assert rates == pytest.approx([1e-3, 5e-4, 0])
    rank.save(tmp_path / "learner")
    longer = start_rank(make_config(*falling, "sft.max_steps=5"), "sft")
    longer.load(tmp_path / "learner")
    assert [longer.fit(update)["learner/learning_rate"] for _ in range(2)] == pytest.approx([2.5e-4, 0])


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
    assert held_out["held_out/loss"] == pytest.approx(np.log(len(watched.rank._family.tokenizer) - 4), rel=0.3)


def test_demonstrations_are_fitted_at_temperature_one(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    """Whatever the rollouts' temperature is: the saved model is used without one."""
    update = plan(rl_samples, 1, 12).updates[0]
    hot = start_rank(make_config("rollout.temperature=2"), "sft").fit(update)
    assert hot == start_rank(make_config(), "sft").fit(update)


def test_looking_averages_the_answers_rows_over_the_picture(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, tiny_model: Path, media: MediaStore
) -> None:
    found = start_rank(make_config()).look(rl_samples[:3])
    read = AttentionRead()
    model = build_policy(tiny_model, torch.device("cpu"), read, dtype="float32", temperature=1.0)
    processor = model.family.processor
    for i, sample in enumerate(rl_samples[:3]):
        with torch.no_grad():
            (attention,) = model(Collator(model.family, media)((sample,)), [read]).attention[read]
        words = [processor.tokenizer.decode([t]) for t in sample.response_token_ids]
        rows = range(words.index("<answer>") + 1, words.index("</answer>"))
        keys = [k for k, t in enumerate(sample.prompt.token_ids) if t == processor.image_token_id]
        policy = torch.cat(list(attention.policies(0)))
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
