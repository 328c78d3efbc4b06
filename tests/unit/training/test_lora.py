"""Adapters in the learner: gradients, the reference that is switched off, checkpoints, export and publication."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ral_system.config.commands import TrainConfig
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_model
from ral_system.scoring.reference import ReferenceScorer
from ral_system.training.learner_rank import LearnerRank
from ral_system.types import UNREAD, Sample, Scores
from tests.offered import manifest_of, read_whole
from tests.unit.training.learners import Start, Watched, equal, plan

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = "learner.lora={rank: 4, alpha: 8, targets: [q_proj, k_proj, v_proj, down_proj], vision: false}"
WITH_VISION = "learner.lora={rank: 4, alpha: 8, targets: [q_proj, k_proj, qkv, mlp.0], vision: true}"
LARGE_STEPS = (
    "stages=[rl]",
    "learner.learning_rate=1e-2",
    "learner.warmup_updates=0",
    "rollout.log_prob_gate.token=1e9",
)
SCALE = 2.0


def moved(rank: LearnerRank) -> LearnerRank:
    """Give adapters weights as after some training."""
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in rank._engine.trained_weights().items():
            if "lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=noise))
    return rank


def same(a: Scores, b: Scores) -> bool:
    assert a.keys() == b.keys()
    return all(
        np.array_equal(a[id].log_probs, b[id].log_probs)
        and len(a[id].attention) == len(b[id].attention)
        and all(np.array_equal(x.values, y.values) for x, y in zip(a[id].attention, b[id].attention, strict=True))
        and a[id].visual_reward == b[id].visual_reward
        for id in a
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [LORA, WITH_VISION], ids=["text", "vision"])
def test_gradients_of_the_attention_loss_alone_are_those_of_the_merged_model(
    start_rank: Start,
    media: MediaStore,
    rl_samples: list[Sample],
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    lora: str,
    checkpointing: bool,
) -> None:
    """dL/dA = scale · Bᵀ dL/dW and dL/dB = scale · dL/dW Aᵀ."""
    attention = (
        "algorithm.attention.weight=5",
        "algorithm.attention.anchor=reference",
        "algorithm.attention.layers=all",
    )
    alone = (*attention, "algorithm.policy_weight=0", "algorithm.kl.coefficient=0", *LARGE_STEPS)
    config = make_config(*alone, lora, f"learner.gradient_checkpointing={checkpointing}")
    rank, split = moved(start_rank(config)), plan(rl_samples, 1, 4)
    rank.save_model(tmp_path / "merged")
    behaviour, reference = rank.score(split), rank.score_reference(split)
    trained = {name: p.detach().clone() for name, p in rank._engine.trained_weights().items()}
    adapted = Watched(rank)
    rank.update(split.updates[0], behaviour, reference)
    whole = Watched(LearnerRank(make_config(*alone), tmp_path / "merged", media, 0, 1, "rl"))
    whole.rank.update(split.updates[0], behaviour, reference)

    ours, theirs = adapted.gradients[0], whole.gradients[0]
    assert ours.keys() == trained.keys()
    reached = set()
    for name, gradient in ours.items():
        module, which = name.removesuffix(".default.weight").split(".lora_")
        of_weight = theirs.get(f"{module}.weight", torch.zeros(()))
        other = trained[f"{module}.lora_{'B' if which == 'A' else 'A'}.default.weight"]
        expected = (
            SCALE * (other.T @ of_weight if which == "A" else of_weight @ other.T) if of_weight.ndim else 0 * gradient
        )
        size = float(expected.norm())
        assert float((gradient - expected).norm()) <= 1e-3 * size + 1e-8, name
        if size > 1e-6:
            reached.add(f"{module.rpartition('.')[2]}.{which}")
    assert {"q_proj.A", "q_proj.B", "k_proj.A", "k_proj.B"} <= reached


@pytest.mark.parametrize("lora", [LORA, WITH_VISION], ids=["text", "vision"])
def test_without_adapters_the_learner_is_the_frozen_reference_bit_for_bit(
    start_rank: Start,
    tiny_model: Path,
    media: MediaStore,
    rl_samples: list[Sample],
    make_config: Callable[..., TrainConfig],
    lora: str,
) -> None:
    config = make_config(
        *("algorithm.attention.weight=5", "algorithm.attention.anchor=reference", *LARGE_STEPS, lora),
        *("reward.visual.weight=0.3", "reward.visual.model=reference", "data.system_prompt=Look."),
    )
    assert config.needs_reference and not config.starts_reference
    groups = (config.algorithm.attention, config.reward.visual)
    settings = {"dtype": "float32", "temperature": config.rollout.temperature, "max_tokens": 1 << 20}
    frozen = ReferenceScorer(*groups, tiny_model, media, **settings)  # type: ignore[arg-type]
    split, rank = plan(rl_samples, 2, 3), start_rank(config)
    for samples in split.rank_samples(0):
        frozen.score(samples)
    expected = frozen.take([s.id for s in rl_samples])
    assert all(s.attention for s in expected.values())
    at_first = rank.score(split)
    assert same(rank.score_reference(split), expected)
    for update in split.updates:
        rank.update(update, at_first, expected)
    assert not same(rank.score(split), at_first)
    assert same(rank.score_reference(split), expected)
    assert not same(rank.score(split), at_first)  # the adapters are on again
    assert len(rank._engine.trained_weights()) == sum(p.requires_grad for p in rank._engine.policy.parameters())


@pytest.mark.parametrize("anchor", ["old", "ema"])
def test_a_checkpoint_holds_adapters_and_continues_bit_by_bit(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable[..., TrainConfig], tmp_path: Path, anchor: str
) -> None:
    decay = ["algorithm.attention.ema_decay=0.5"] if anchor == "ema" else []
    config = make_config(LORA, *LARGE_STEPS, f"algorithm.attention.anchor={anchor}", *decay)
    split, straight = plan(rl_samples, 4, 3), Watched(start_rank(config))
    scores = straight.rank.score(split)
    for update in split.updates[:2]:
        straight.rank.update(update, scores, scores)
    straight.rank.save(tmp_path / "learner")
    resumed = Watched(start_rank(config))
    assert not equal(resumed.weights(), straight.weights())
    resumed.rank.load(tmp_path / "learner")
    assert same(resumed.rank.score(split), straight.rank.score(split))
    for update in split.updates[2:]:
        metrics = [watched.rank.update(update, scores, scores) for watched in (straight, resumed)]
        assert metrics[0] == metrics[1]
    assert equal(straight.weights(), resumed.weights())
    saved = load_file(tmp_path / "learner" / "weights.safetensors")
    assert saved.keys() == straight.rank._engine.trained_weights().keys()
    assert all(".lora_A." in name or ".lora_B." in name for name in saved)


def test_published_and_exported_weights_are_the_merged_ones(
    start_rank: Start,
    tiny_model: Path,
    media: MediaStore,
    rl_samples: list[Sample],
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
) -> None:
    config = make_config(LORA, *LARGE_STEPS)
    rank, split = start_rank(config), plan(rl_samples, 1, 4)
    start = load_model(tiny_model, dtype="float32").state_dict()
    first = rank.publish(0)
    assert first == manifest_of(0, start)
    moved(rank)
    unread = rank.publish(0)
    manifest = read_whole(rank, 0)
    assert manifest is not None and unread is not None and unread != manifest
    changed = [name for name in start if manifest.tensors[name] != first.tensors[name]]
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "k_proj", "v_proj", "down_proj"}
    rank.save_model(tmp_path / "model")
    saved = load_model(tmp_path / "model", dtype="float32").state_dict()
    assert manifest_of(0, saved) == manifest
    assert [name for name, digest in unread.tensors.items() if digest.checksum == UNREAD] == changed
    read, offer = rank.offer(manifest, changed)  # what engines do not have yet
    assert offer is not None and list(offer.names) == list(read) == changed
    for name, array in offer.arrays.items():  # type: ignore[attr-defined]
        assert np.array_equal(saved[name].numpy(), array), name
    assert sorted(f.name for f in (tmp_path / "model" / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    plain = LearnerRank(make_config(*LARGE_STEPS), tmp_path / "model", media, 0, 1, "rl")
    ours, theirs = rank.score(split), plain.score(split)
    for id, scores in ours.items():
        assert np.allclose(scores.log_probs, theirs[id].log_probs, atol=1e-5)
