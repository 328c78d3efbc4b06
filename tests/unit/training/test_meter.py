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
    assert rank.work() == Work()
    rank.update(plan.updates[0], scores, scores)
    work = rank.work()
    lengths = [len(s.prompt.token_ids) for s in (one, other)]
    responses = [len(s.response_token_ids) for s in (one, again, other)]
    assert work.tokens == sum(lengths) + sum(responses)
    assert work.unshared_tokens == work.tokens + lengths[0]
    assert work.media == (0 if frozen else 2)
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


def test_rates_are_of_one_rank() -> None:
    ranks = [
        Work(2.0, 100, 300, 3, 4 * 10**12, 8 * 10**12, 1.5, "cpu"),
        Work(3.0, 200, 300, 1, 10**12, 2 * 10**12, 2.5, "cpu"),
    ]
    assert meters(ranks) == {
        "learner/tokens_per_s": 60.0,
        "learner/tflops": 1.0,
        "learner/unshared_tflops": 2.0,
        "learner/shared_tokens": 0.5,
        "learner/media_encoded": 4.0,
        "learner/peak_gib": 2.5,
    }
    on_gpu = [replace(work, device="NVIDIA H100 80GB HBM3") for work in ranks]
    assert meters(on_gpu)["learner/mfu"] == pytest.approx(1 / 989)
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
