"""What a learner counts in its updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ral_system.batches.collate import Collator
from ral_system.config.commands import TrainConfig
from ral_system.models.flops import FlopCounter
from ral_system.observability.work import Work, meters
from ral_system.training.plan import plan_updates
from ral_system.types import Sample
from tests.unit.training.learners import Start


@pytest.mark.parametrize("frozen", [False, True])
def test_an_updates_tokens_and_operations_are_counted(
    frozen: bool, start_rank: Start, make_config: Callable[..., TrainConfig], rl_samples: list[Sample]
) -> None:
    rank = start_rank(make_config(f"model.freeze_vision={str(frozen).lower()}", "rollout.log_prob_gate.token=1e9"))
    (one, other), again = rl_samples[:2], replace(rl_samples[0], id="again")
    plan = plan_updates([one, again, other], updates=1, shards=1, max_tokens=1000)
    scores = rank.score(plan)
    assert rank.work() == Work(encoder_passes=1, media=2)
    rank.update(plan.updates[0], scores, scores)
    rank.look([one])
    work = rank.work()
    lengths = [len(s.prompt.token_ids) for s in (one, other)]
    responses = [len(s.response_token_ids) for s in (one, again, other)]
    assert work.tokens == sum(lengths) + sum(responses)
    assert work.unshared_tokens == work.tokens + lengths[0]
    assert (work.encoder_passes, work.media) == ((0, 0) if frozen else (2, 4))  # the first update measures the share
    assert (work.distinct_tokens, work.filler_tokens) == (work.tokens, 0)
    policy = rank._engine.policy
    counter, batch = FlopCounter(policy.model, policy.family), rank._collate((one, again, other))
    pictures = [policy.family.layout(s.prompt.media[0]) for s in (one, other)]
    vision = 0 if frozen else 3 * counter.vision(pictures)
    assert work.flops == 3 * (counter.text(batch.packing) + counter.head(sum(responses))) + vision
    apart = (1 if frozen else 3) * counter.vision([*pictures, pictures[0]])
    assert work.unshared_flops == 3 * (counter.text(batch.packing, shared=False) + counter.head(sum(responses))) + apart
    assert work.seconds > 0 and work.peak_gib > 0.1
    assert rank.work() == Work()
    assert isinstance(rank._collate, Collator)


def test_prompts_that_pass_again_and_fillers_are_duplicates(
    start_rank: Start, make_config: Callable[..., TrainConfig], rl_samples: list[Sample]
) -> None:
    """A budget of one token gives each sample a pass of its own; the second shard has one sample and an empty pass."""
    config = make_config("model.freeze_vision=true", "rollout.log_prob_gate.token=1e9")
    one, other = rl_samples[0], rl_samples[1]
    again = replace(one, id=f"{one.id} again")
    update = plan_updates([one, again], updates=1, shards=1, max_tokens=1).updates[0]
    assert update.shards == (((one,), (again,)),)
    both = replace(update, shards=(*update.shards, ((other,), ())))
    work = []
    for shards in (both.shards, both.shards[::-1]):  # this rank's is the first
        rank = start_rank(config)
        scores = rank.score(plan_updates([one, again, other], updates=1, shards=1, max_tokens=1000))
        rank.work()
        rank.update(replace(both, shards=shards), scores, scores)
        work.append(rank.work())

    def length(sample: Sample) -> int:
        return len(sample.prompt.token_ids) + len(sample.response_token_ids)

    assert [(w.tokens, w.filler_tokens) for w in work] == [(2 * length(one), 0), (length(other), length(other))]
    distinct = length(one) + len(again.response_token_ids) + length(other)
    assert [w.distinct_tokens for w in work] == [distinct, distinct]
    ranks = [work[0], replace(work[1], distinct_tokens=0)]  # one rank counts
    passed = 2 * length(one) + 2 * length(other)
    assert meters(ranks)["learner/duplicate_tokens"] == pytest.approx(1 - distinct / passed)


def test_every_pass_of_the_encoder_counts(
    start_rank: Start, make_config: Callable[..., TrainConfig], rl_samples: list[Sample]
) -> None:
    """While it is trained: one pass in scoring, one for the share of the gradient, one in the update."""
    share = "algorithm.attention={weight: 5.0, gradient_share_every: 1}"
    rank = start_rank(make_config(share, "model.freeze_vision=false", "rollout.log_prob_gate.token=1e9"))
    plan = plan_updates(rl_samples[:2], updates=1, shards=1, max_tokens=1000)
    scores = rank.score(plan)
    rank.update(plan.updates[0], scores, scores)
    work = rank.work()
    assert (work.encoder_passes, work.media) == (3, 6)
    rank.validate(plan.updates[0])
    assert rank.work() == Work()


def test_rates_are_of_one_rank() -> None:
    ranks = [
        Work(2.0, 100, 300, 200, 20, 2, 3, 4 * 10**12, 8 * 10**12, 1.5, "cpu"),
        Work(3.0, 200, 300, 0, 80, 1, 1, 10**12, 2 * 10**12, 2.5, "cpu"),
    ]
    assert meters(ranks) == {
        "learner/tokens_per_s": 60.0,
        "learner/tflops": 1.0,
        "learner/unshared_tflops": 2.0,
        "learner/shared_tokens": 0.5,
        "learner/duplicate_tokens": 0.5,
        "learner/encoder_passes": 3.0,
        "learner/media_encoded": 4.0,
        "learner/peak_gib": 2.5,
    }
    on_gpu = [replace(work, device="NVIDIA H100 80GB HBM3") for work in ranks]
    assert meters(on_gpu)["learner/mfu"] == pytest.approx(1 / 989)
    assert meters(on_gpu)["learner/unshared_mfu"] == pytest.approx(2 / 989)
    assert meters([Work(), Work()]) == {}


@pytest.mark.parametrize(
    ("device", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
    ],
)
def test_boards_of_one_name_have_their_own_peaks(device: str, tflops: float) -> None:
    work = Work(seconds=1.0, tokens=1, unshared_tokens=1, flops=10**12, device=device)
    assert meters([work])["learner/mfu"] == pytest.approx(1 / tflops)
