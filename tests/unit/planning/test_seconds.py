"""Seconds and operations of the phases of a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ral_system.attention.packing import Packing
from ral_system.config.commands import PlanCommandConfig
from ral_system.models.flops import FlopCounter
from ral_system.planning.devices import gpu
from ral_system.planning.memory import Cache, Weights
from ral_system.planning.passes import OutlinedPolicy
from ral_system.planning.seconds import Clock
from ral_system.planning.workload import BlankMedia, asked, step_samples
from ral_system.training.learner_rank import LearnerRank
from ral_system.training.plan import plan_updates
from tests.composed import compose_config
from tests.unit.planning.models import LORA, SMALL_STEP, VIDEO, planned

_UPDATE = 3 + 1 / 10
"""Passes of an update: forward, once more, backward, and in every tenth step that of the gradient's share."""


@pytest.mark.parametrize(
    "trained",
    [
        "model.freeze_vision=false",
        "model.freeze_vision=true",
        LORA,
        LORA.replace("targets: [", "targets: [qkv, ").replace("vision: false", "vision: true"),
    ],
)
def test_operations_are_those_that_a_learner_counts(trained: str, tiny_model: Path) -> None:
    small = ("plan.text_tokens=30", "plan.response_tokens=12", "algorithm.prompts_per_step=4", "plan.medium=image")
    overrides = (
        *small,
        "stages=[rl]",
        trained,
        "algorithm.attention.gradient_share_every=0",
        "rollout.log_prob_gate.token=1e9",
    )
    config = compose_config("cluster=local", *overrides, kind=PlanCommandConfig)
    outline = OutlinedPolicy(tiny_model, "float32", "cpu", config, trained=True)
    samples = step_samples(config, config.plan, outline.family)
    dealt = plan_updates(samples, updates=config.algorithm.updates_per_step, shards=1, max_tokens=4096)
    rank = LearnerRank(config, tiny_model, BlankMedia(), 0, 1, "rl")  # type: ignore[arg-type]
    scores = rank.score(dealt)
    for update in dealt.updates:
        rank.update(update, scores, scores)
    clock, counted = Clock(config, outline, gpu(config.plan)), rank.work().flops
    assert clock.update(dealt).flops == counted
    again = config.algorithm.model_copy(update={"passes_per_step": 3})
    assert (
        Clock(config.model_copy(update={"algorithm": again}), outline, gpu(config.plan)).update(dealt).flops
        == 3 * counted
    )


def test_decoding_waits_for_memory_or_for_products(one_layer: Path) -> None:
    small = (*SMALL_STEP, "rollout.workers=4")
    config = compose_config(*VIDEO, *small, kind=PlanCommandConfig)
    outline = OutlinedPolicy(one_layer, "bfloat16", "cuda", config, trained=True)
    samples, weights = step_samples(config, config.plan, outline.family), Weights.of(outline.model).bytes
    slow_memory = replace(gpu(config.plan), flops_per_s=1e30, bytes_per_s=1e9, decode_s=0.5)
    cache = Cache(bytes=10**12, token_bytes=2000)  # of an engine's 2 prompts it holds all 16 sequences
    phase = Clock(config, outline, slow_memory).rollout(samples, cache)
    assert phase.bound == "memory"
    assert phase.seconds == pytest.approx(16 * (0.5 + (weights + 16 * 2000 * (100 + 8)) / 1e9))
    full = replace(cache, bytes=2000 * (100 + 8 * 16) // 2)  # half a group: four rounds
    phase = Clock(config, outline, slow_memory).rollout(samples, full)
    assert phase.seconds == pytest.approx(4 * 16 * (0.5 + (weights + 4 * 2000 * (100 + 8)) / 1e9))
    counter = FlopCounter(outline.model, outline.family)
    pair = 4 * 28 * 128  # one layer, 28 heads of 128
    token = counter.text(Packing.apart((1,))) + counter.head(1) + pair * (100 + 8 - 1)
    slow_products = replace(slow_memory, flops_per_s=1e9, bytes_per_s=1e30, decode_s=0.0)
    phase = Clock(config, outline, slow_products).rollout(samples, cache)
    prompts = counter.text(Packing.apart((100,)))
    assert phase.bound == "compute" and phase.flops == 8 * prompts + 64 * 16 * token
    assert phase.seconds == pytest.approx((2 * prompts + 16 * 16 * token) / 1e9)


def test_zero_3_waits_for_weights_in_every_pass(one_layer: Path) -> None:
    config = compose_config(*VIDEO, *SMALL_STEP, kind=PlanCommandConfig)
    outline = OutlinedPolicy(one_layer, "bfloat16", "cuda", config, trained=True)
    samples = step_samples(config, config.plan, outline.family)
    dealt = plan_updates(samples, updates=2, shards=4, max_tokens=32768)
    slow = replace(gpu(config.plan), flops_per_s=1e30, link_bytes_per_s=1e9)
    gathering_s = 0.75 * Weights.of(outline.model).bytes / 1e9
    clock = Clock(config, outline, slow)
    assert [len(update.shards[0]) for update in dealt.updates] == [1, 1]
    assert clock.score(dealt).seconds == pytest.approx(2 * gathering_s)
    assert clock.update(dealt).seconds == pytest.approx(_UPDATE * 2 * gathering_s)
    bounded = compose_config(*VIDEO, *SMALL_STEP, "algorithm.attention.max_gradient_share=0.1", kind=PlanCommandConfig)
    every = Clock(bounded, outline, slow)
    assert every.update(dealt).seconds == pytest.approx((3 + 1) * 2 * gathering_s)  # measured in every update
    offloaded = config.learner.model_copy(update={"offload": "optimizer_and_parameters"})
    own = Weights.of(outline.model)
    slow_host = replace(slow, host_bytes_per_s=1e9)
    clock = Clock(config.model_copy(update={"learner": offloaded}), outline, slow_host)
    fetching_s = own.bytes / 4 / 1e9
    assert clock.score(dealt).seconds == pytest.approx(2 * (gathering_s + fetching_s))
    step_s = own.trained / 4 * (6 / 1e9 + 28 / 2e10)
    assert clock.update(dealt).seconds == pytest.approx(_UPDATE * 2 * (gathering_s + fetching_s) + 2 * step_s)
    assert clock.update(dealt).bound == "links"


def test_ranks_that_share_passes_send_heads_and_tokens_in_every_layer(one_layer: Path) -> None:
    small = (*SMALL_STEP, "learner.zero_stage=2")
    together = ("learner.world_size=4", "learner.sequence_parallel=4")
    config = compose_config(*VIDEO, *small, *together, kind=PlanCommandConfig)
    outline = OutlinedPolicy(one_layer, "bfloat16", "cuda", config, trained=True)
    samples = step_samples(config, config.plan, outline.family)
    dealt = plan_updates(samples, updates=2, shards=1, max_tokens=config.learner.pass_tokens)
    clock = Clock(config, outline, replace(gpu(config.plan), flops_per_s=1e30, link_bytes_per_s=1e6))
    tokens = sum(100 + 8 * 16 for _ in range(8))
    bytes_each = 2 * 128 * (28 + 4 + 4 + 28)  # one layer, 28 heads of 128 on 4 key heads
    assert clock.score(dealt).seconds == pytest.approx(tokens / 4 * bytes_each * 0.75 / 1e6)
    summed_s = 2 * 2 * 0.75 * 2 * Weights.of(outline.model).trained / 1e6  # two updates, there and back
    assert clock.update(dealt).seconds == pytest.approx(_UPDATE * tokens / 4 * bytes_each * 0.75 / 1e6 + summed_s)
    slow = replace(gpu(config.plan), flops_per_s=1e9, link_bytes_per_s=1e30)
    assert Clock(config, outline, slow).score(dealt).seconds == pytest.approx(
        Clock(config, outline, slow).score(dealt).flops / 4 / 1e9
    )


@pytest.mark.parametrize(("zero_stage", "sums"), [(2, 1), (3, 0)])
def test_every_update_adds_up_gradients_over_ranks(one_layer: Path, zero_stage: int, sums: int) -> None:
    small = (*SMALL_STEP, "learner.max_tokens=32768")
    config = compose_config(*VIDEO, *small, f"learner.zero_stage={zero_stage}", kind=PlanCommandConfig)
    outline = OutlinedPolicy(one_layer, "bfloat16", "cuda", config, trained=True)
    dealt = plan_updates(step_samples(config, config.plan, outline.family), updates=2, shards=4, max_tokens=32768)
    slow = replace(gpu(config.plan), flops_per_s=1e30, link_bytes_per_s=1e9)
    weights = Weights.of(outline.model)
    gathered_s = _UPDATE * 0.75 * weights.bytes / 1e9 if zero_stage == 3 else 0.0
    summed_s = sums * 2 * 0.75 * 2 * weights.trained / 1e9
    assert Clock(config, outline, slow).update(dealt).seconds == pytest.approx(2 * (gathered_s + summed_s))


def test_a_publication_is_bound_by_memory_links_or_the_host(one_layer: Path) -> None:
    config = compose_config(*VIDEO, *SMALL_STEP, kind=PlanCommandConfig)
    outline = OutlinedPolicy(one_layer, "bfloat16", "cuda", config, trained=True)
    own = Weights.of(outline.model)
    assert own.trained < own.all  # vision is frozen, and travels once
    slow = replace(gpu(config.plan), bytes_per_s=1e9, link_bytes_per_s=1e30)
    phase = Clock(config, outline, slow).publish()
    assert phase.seconds == pytest.approx(own.trained * 2 * (2 * 10 + 4) / 1e9)
    slow = replace(gpu(config.plan), bytes_per_s=1e30, link_bytes_per_s=1e9)
    gathering_s = 0.75 * own.trained * 2 / 1e9  # ZeRO 3
    assert Clock(config, outline, slow).publish().seconds == pytest.approx(own.trained * 2 / 1e9 + gathering_s)
    kept = config.model_copy(update={"rollout": config.rollout.model_copy(update={"weight_transfer": "files"})})
    assert Clock(kept, outline, slow).publish().seconds > own.trained * 2 * 4.6e-9


@pytest.mark.parametrize(("frozen", "again"), [("true", 0.0), ("false", 1.1)])
def test_each_process_preprocesses_its_media_once_or_in_every_pass(one_layer: Path, frozen: str, again: float) -> None:
    small = ("plan.medium=video", "data.video.max_frames=8", "plan.response_tokens=16", f"model.freeze_vision={frozen}")
    config = compose_config(*VIDEO, *small, kind=PlanCommandConfig)
    outline = OutlinedPolicy(one_layer, "bfloat16", "cuda", config, trained=True)
    samples = step_samples(config, config.plan, outline.family)
    (video,) = samples[0].prompt.media
    video_s = 3e-8 * 8 * video.width_px * video.height_px  # 8 prompts have one each
    dealt = plan_updates(samples, updates=2, shards=4, max_tokens=32768)
    swift = replace(gpu(config.plan), flops_per_s=1e30, bytes_per_s=1e30, link_bytes_per_s=1e30, decode_s=0.0)
    clock = Clock(config, outline, swift)
    assert clock.score(dealt).seconds == pytest.approx(2 * video_s) and clock.score(dealt).bound == "media"
    assert clock.update(dealt).seconds == pytest.approx(again * 2 * video_s)
    assert clock.reference(dealt).seconds == pytest.approx(2 * video_s if again else 0.0)
    assert clock.fit(plan_updates(samples, updates=1, shards=4, max_tokens=32768)).seconds == pytest.approx(2 * video_s)
    assert clock.frozen("reference", outline, samples, 32768, 1).seconds == pytest.approx(8 * video_s)
    assert clock.rollout(samples, Cache(10**12, 2000)).seconds == pytest.approx(3 * video_s)  # of three engines
    several = asked(samples, 30)
    assert clock.rollout(several, Cache(10**12, 2000)).seconds == pytest.approx(10 * video_s)


def test_processes_of_the_reference_share_bundles(one_layer: Path) -> None:
    config = compose_config(*VIDEO, *SMALL_STEP, kind=PlanCommandConfig)
    outline = OutlinedPolicy(one_layer, "bfloat16", "cuda", config, trained=False)
    samples = step_samples(config, config.plan, outline.family)
    clock = Clock(config, outline, gpu(config.plan))

    def share(processes: int) -> float:
        of_eight = [clock.frozen("reference", outline, samples, 8 * 400, n).seconds for n in (1, processes)]
        return of_eight[1] / of_eight[0]  # groups of 228 tokens: two make a bundle, and there are four

    assert [share(2), share(3), share(4), share(9)] == pytest.approx([0.5, 0.5, 0.25, 0.25])
    many, _ = planned(one_layer, *VIDEO, *SMALL_STEP, "cluster.scorers=2")
    assert "cluster.scorers=2: a batch has 1 bundle to score" in many.advice[0]
