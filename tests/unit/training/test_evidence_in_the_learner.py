"""Evidence in the learner: how much of the attention is on it, and rows that are drawn to it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ral_system.attention.group import GroupAttention
from ral_system.attention.metrics import decay
from ral_system.batches.collate import Collator
from ral_system.errors import DataError
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.training.evidence import evidence_rows
from ral_system.training.plan import plan_updates
from ral_system.types import Clip, Credit, Media, Prompt, Region, Sample, TrainPlan, VideoSampling
from tests.unit.training.learners import Start, Watched, equal

pytestmark = pytest.mark.usefixtures("one_thread")


def plan(samples: Sequence[Sample], max_tokens: int = 10_000) -> TrainPlan:
    return plan_updates(list(samples), updates=1, shards=1, max_tokens=max_tokens, deal="groups")


def seen(samples: Sequence[Sample], *evidence: Region) -> list[Sample]:
    return [replace(s, prompt=replace(s.prompt, evidence=evidence)) for s in samples]


def test_the_mass_on_evidence_is_reported_by_sign(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    """On all of a picture it is 1, on its parts it adds up to that; prompts without evidence have none."""
    rank = Watched(start_rank(make_config("algorithm=grpo", "learner.learning_rate=0")))

    def metrics(*evidence: Region) -> dict[str, float]:
        return rank.train(plan(seen(rl_samples[:6], *evidence)))[0]

    whole, left, right = (metrics(Region(a, 0, b, 1)) for a, b in ((0, 1), (0, 0.3), (0.3, 1)))
    for suffix in ("", "_positive", "_negative"):
        names = [f"attention/{name}{suffix}" for name in ("evidence_mass", "evidence_area", "pointing")]
        assert [whole[name] for name in names] == pytest.approx([1, 1, 1])
        for name in names[:2]:
            assert 0 < left[name] < 1 and left[name] + right[name] == pytest.approx(1)
    unknown = metrics()
    assert "attention/visual_mass" in unknown
    assert not any("evidence" in name or "pointing" in name for name in unknown)
    old = rank.rank.score(plan(rl_samples[:6]))
    halves = [decay(scores.row_statistics["visual_mass"]) for scores in old.values()]
    assert unknown["attention/decay"] == pytest.approx(np.mean([d for d in halves if d is not None]))
    half_known = rank.train(plan([*rl_samples[:3], *seen(rl_samples[3:6])]))[0]
    known = rank.train(plan(rl_samples[:3]))[0]
    assert half_known["attention/evidence_mass"] == pytest.approx(known["attention/evidence_mass"], rel=1e-4)


EASE = ("algorithm=ease", "algorithm.kl.coefficient=0", "algorithm.attention.weight=5", "learner.learning_rate=0")
READS = {
    "the preset": (),
    "of answers": ("algorithm.attention.rows=answer",),
    "of the rows that chose": ("algorithm.attention.rows=predicting",),
    "of heads and layers": ("algorithm.attention.heads=each", "algorithm.attention.layers=all"),
    "dense": ("algorithm.attention.backend=dense",),
    "other boxes": ("algorithm.attention.objective.boxes=other",),
}
each_read = pytest.mark.parametrize("options", READS.values(), ids=READS)
REWARDS = (1.0, 0.0, 0.5)


def groups(samples: Sequence[Sample], rewards: Sequence[float | None] = REWARDS, count: int = 2) -> list[Sample]:
    """Responses with these rewards to each of `count` questions, all of advantage 0."""
    found = []
    for i, sample in enumerate(samples[:count]):
        for n, reward in enumerate(rewards):
            ids, log_probs = sample.response_token_ids[n:], sample.rollout_log_probs[n:]
            credit = Credit(0.0, *[(0.0,) * len(rewards)] * 2, reward)
            prompt = replace(sample.prompt, id=f"question {i}")
            found.append(Sample(f"{i}#{n}", prompt, ids, log_probs, 0.0, index=n, credit=credit))
    return found


@each_read
def test_the_only_update_of_a_batch_has_a_gradient_whatever_the_packing(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, options: tuple[str, ...]
) -> None:
    """Also in right responses whose advantage is 0, and in the attention alone."""
    once = ("algorithm.updates_per_step=1", "rollout.log_prob_gate.token=1e9")
    config = make_config(*EASE, *once, *options)
    found = []
    for max_tokens in (10_000, 1):
        watched = Watched(start_rank(config))
        found.append((watched.train(plan(groups(rl_samples), max_tokens))[0], watched.gradients[0]))
    (metrics, gradients), (other_metrics, other_gradients) = found
    visual = max(s.prompt.visual_tokens for s in rl_samples[:2])
    assert 0 < metrics["attention/loss"] <= math.log(visual / 0.1)
    assert metrics["attention/divergence"] == 0
    assert metrics["attention/evidence_gate"] == pytest.approx(2 / 3)
    assert other_metrics["attention/loss"] == pytest.approx(metrics["attention/loss"], abs=1e-6)
    moved = {name for name, g in gradients.items() if g.abs().max() > 0}
    assert "model.model.language_model.layers.1.self_attn.q_proj.weight" in moved
    assert "model.lm_head.weight" not in moved
    largest = max(g.abs().max().item() for g in gradients.values())
    for name, gradient in gradients.items():
        assert torch.allclose(other_gradients[name], gradient, rtol=5e-3, atol=1e-4 * largest), name


@each_read
def test_at_learning_rate_zero_every_update_is_the_first(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable, options: tuple[str, ...]
) -> None:
    one = plan(groups(rl_samples))
    watched = Watched(start_rank(make_config(*EASE, *options, "rollout.log_prob_gate.token=1e9")))
    scores = watched.rank.score(one)
    first, again = (watched.rank.update(one.updates[0], scores, None) for _ in range(2))
    assert first["attention/loss"] == again["attention/loss"] != 0
    assert equal(*watched.gradients)


def test_a_held_share_does_not_depend_on_the_weight(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    """The preset sets 0.001."""
    samples = plan([replace(s, advantage=1.0) for s in groups(rl_samples)])
    held = ("algorithm=ease", "rollout.log_prob_gate.token=1e9", "algorithm.attention.target_gradient_share=0.2")
    found = []
    for weight in (1, 0.001):
        watched = Watched(start_rank(make_config(*held, f"algorithm.attention.weight={weight}")))
        found.append((watched.train(samples), watched.gradients[0]))
    (((one,), gradients), ((other,), others)) = found
    assert one == other and equal(gradients, others)
    assert one["attention/gradient_share"] == pytest.approx(0.2)


@pytest.fixture
def losses(start_rank: Start, make_config: Callable) -> Callable[..., float]:
    def loss(samples: Sequence[Sample], *options: str) -> float:
        config = make_config(*EASE, "rollout.log_prob_gate.token=1e9", *options)
        return Watched(start_rank(config)).train(plan(samples))[0]["attention/loss"]

    return loss


def test_the_loss_is_the_mean_over_the_rows_that_pass_the_gate(
    rl_samples: list[Sample], losses: Callable[..., float]
) -> None:
    """Others are as if they were not there; without a verdict nothing passes."""
    alone = losses(groups(rl_samples, (1.0,), count=1))
    rows = len(rl_samples[0].response_token_ids)
    both = losses(groups(rl_samples, (1.0, 0.2, None, 1.0), count=1))
    (*_, last) = groups(rl_samples, (1.0, 0.2, None, 1.0), count=1)
    fourth = losses([replace(last, index=0, credit=Credit(0.0, (0.0,), (0.0,), 1.0))])
    assert both == pytest.approx((rows * alone + (rows - 3) * fourth) / (2 * rows - 3), rel=1e-5)
    assert losses(groups(rl_samples, (0.4, None))) == 0
    lower = losses(groups(rl_samples, (0.4,), count=1), "algorithm.attention.objective.gate=0.3")
    assert lower == pytest.approx(alone, rel=1e-6)


def test_rows_of_closed_gates_are_not_computed(
    rl_samples: list[Sample], losses: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two groups, one without a response that counts, and in the other one that does."""
    computed: list[int] = []
    whole = GroupAttention.divergence_to

    def counted(self: GroupAttention, target: torch.Tensor, kind: str) -> torch.Tensor:
        computed.append(len(self.rows))
        return whole(self, target, kind)

    monkeypatch.setattr(GroupAttention, "divergence_to", counted)
    (first, *_), closed = groups(rl_samples, (0.0, 1.0), count=2)[1:], groups(rl_samples, (0.1, None), count=2)[2:]
    losses([*groups(rl_samples, (0.0, 1.0), count=1), *closed], "algorithm.attention.gradient_share_every=0")
    assert computed == [len(first.response_token_ids)]


def test_other_boxes_are_another_target(rl_samples: list[Sample], losses: Callable[..., float]) -> None:
    own = losses(groups(rl_samples))
    assert losses(groups(rl_samples), "algorithm.attention.objective.boxes=other") != pytest.approx(own, rel=1e-3)


def test_a_prompt_without_evidence_is_named_or_skipped(rl_samples: list[Sample], losses: Callable[..., float]) -> None:
    known, unknown = groups(rl_samples, count=1), seen(groups(rl_samples))[3:]
    with pytest.raises(DataError, match=r"^prompt question 1: it does not say where its answer is.*missing to skip$"):
        losses([*known, *unknown])
    skip = "algorithm.attention.objective.missing=skip"
    assert losses([*known, *unknown], skip) == pytest.approx(losses(known), rel=1e-5)
    assert losses(unknown, skip) == 0


def test_a_video_whose_sampled_frames_miss_its_evidence_is_named(
    tiny_model: Path, media: MediaStore, make_config: Callable
) -> None:
    video = Media("v", 56, 56, Clip(VideoSampling(1, 2, 2), (0.0, 3.0), 4.0))
    prompt = Prompt("film", "", "", "", (video,), (1,), evidence=(Region(0, 0, 1, 1, start_s=1.0, end_s=2.0),))
    family, sample = load_family(tiny_model), Sample("film#0", prompt, (1, 2), credit=Credit(0.0, (0.0,), (0.0,), 1.0))
    collate = Collator(family, media)
    with pytest.raises(DataError, match=r"^prompt film: no sampled frame shows where .*sample more frames, or set"):
        evidence_rows([sample], collate, family, make_config(*EASE).algorithm.attention)
    skip = make_config(*EASE, "algorithm.attention.objective.missing=skip").algorithm.attention
    assert evidence_rows([sample], collate, family, skip) == 1
    shown = replace(sample, prompt=replace(prompt, evidence=(Region(0, 0, 1, 1, end_s=1.0),)))
    assert evidence_rows([shown, replace(shown, id="film#1")], collate, family, skip) == 4


def test_a_box_that_no_token_notices_is_named(rl_samples: list[Sample], losses: Callable[..., float]) -> None:
    """One of a ten-thousandth of the width and height; ten times that has a target."""
    tiny, small = (seen(groups(rl_samples, count=1), Region(0.5, 0.5, 0.5 + s, 0.5 + s)) for s in (1e-4, 1e-3))
    with pytest.raises(
        DataError, match=r"^prompt question 0: its boxes cover less than a millionth of .*; give larger ones"
    ):
        losses(tiny)
    assert losses(small) > 0


def test_training_brings_attention_to_the_evidence(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    """With its own boxes more of the mass is there after a few updates, and with others it is not."""
    found = {}
    for boxes in ("own", "other"):
        options = ("learner.learning_rate=1e-2", "learner.warmup_updates=0", "rollout.log_prob_gate.token=1e9")
        config = make_config(*EASE[:3], *options, f"algorithm.attention.objective.boxes={boxes}")
        rank, one = Watched(start_rank(config)), plan(groups(rl_samples))
        found[boxes] = [rank.train(one)[0]["attention/evidence_mass"] for _ in range(6)]
    assert found["own"][0] == found["other"][0]
    assert found["own"][-1] > found["own"][0] + 0.05 > found["other"][-1] + 0.05
