"""The supervised stages, against learners that go through them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ral_system.config.commands import PlanCommandConfig
from ral_system.models.flops import FlopCounter
from ral_system.planning.devices import CONTEXT, gpu
from ral_system.planning.memory import Role, largest_micro_batch, on_shared_device, rollout_role
from ral_system.planning.passes import OutlinedPolicy, fit_pass, new_policy, text_flops
from ral_system.planning.seconds import WRITE_BYTES_PER_S, Clock, preprocess_s
from ral_system.planning.supervised import StagePlan
from ral_system.planning.workload import BlankMedia, asked
from ral_system.training.learner_rank import LearnerRank
from ral_system.training.plan import plan_updates
from ral_system.types import TrainPlan
from tests.unit.planning.models import FEW, SMALL_STEP, VIDEO, planned
from tests.unit.planning.test_passes import measured

LOCAL = ("cluster=local", "plan.device=a100", "plan.text_tokens=20", "plan.response_tokens=8", *FEW)
GUIDED = "sft.attention_guidance={image: 0.15, system: 0.15}"


def stage_of(folder: Path, name: str, *overrides: str) -> tuple[StagePlan, TrainPlan, PlanCommandConfig]:
    """A stage's plan, its update, and the configuration."""
    plan, config = planned(folder, *LOCAL, "perceive.batch=8", "sft.batch=8", *overrides)
    (stage,) = (stage for stage in plan.supervised if stage.name == name)
    dealt = plan_updates(stage.samples, updates=1, shards=1, max_tokens=config.learner.pass_tokens)
    return stage, dealt, config


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        pytest.param("perceive", (), marks=pytest.mark.long),
        ("perceive", ("learner.max_tokens=300",)),
        ("sft", (GUIDED,)),
        ("sft", ("model.freeze_vision=true",)),
        pytest.param("sft", ("learner.gradient_checkpointing=true", "data=video_search"), marks=pytest.mark.long),
    ],
)
def test_passes_and_learners_hold_what_is_planned(tiny_model: Path, name: str, overrides: tuple[str, ...]) -> None:
    stage, dealt, config = stage_of(tiny_model, name, *overrides)
    outline = OutlinedPolicy(tiny_model, "float32", "cpu", config, trained=True)
    samples, guidance = largest_micro_batch(dealt), config.supervised(stage.name).attention_guidance
    policy = new_policy(outline.family, "float32", torch.device("cpu"), config, trained=True)
    batch = outline.collate(samples)
    copied = sum(part.nbytes for part in batch.features.values())
    found = measured(lambda: fit_pass(policy, batch, samples, guidance))
    update = outline.fit(samples, guidance).peak
    assert update == pytest.approx(found + copied, rel=0.01)
    ranks = []

    def learn() -> None:
        ranks.append(LearnerRank(config, tiny_model, BlankMedia(), 0, 1, stage.name))  # type: ignore[arg-type]
        for _ in range(2):  # the second with an optimiser's state
            ranks[0].fit(dealt.updates[0])

    assert sum(stage.learner.device.values()) + update == pytest.approx(measured(learn), rel=0.1)


@pytest.mark.parametrize(("name", "overrides"), [("perceive", ()), ("sft", ()), ("sft", ("model.freeze_vision=true",))])
def test_operations_are_those_that_torch_counts(tiny_model: Path, name: str, overrides: tuple[str, ...]) -> None:
    stage, dealt, config = stage_of(tiny_model, name, *overrides)
    rank = LearnerRank(config, tiny_model, BlankMedia(), 0, 1, stage.name)  # type: ignore[arg-type]
    with FlopCounterMode(display=False) as counted:
        rank.fit(dealt.updates[0])
    assert stage.step.flops == rank.work().flops
    outline = OutlinedPolicy(tiny_model, "float32", "cpu", config, trained=True)
    family, text = outline.family, outline.family.config.get_text_config()
    # torch counts no attention on a CPU, and takes no gradient of pixels
    pairs = sum(sample.length * (sample.length + 1) // 2 for sample in stage.samples)
    attention = 3 * 4 * text.num_hidden_layers * text.hidden_size * pairs
    layouts = [family.layout(medium) for sample in stage.samples for medium in sample.prompt.media]
    passes = 1 if overrides else 3
    attention += passes * sum(map(family.vision_attention_flops, layouts))
    patches = sum(layout.patches or layout.tokens * family.patches_per_token for layout in layouts)
    (embedding,) = (p.numel() for name, p in outline.model.named_parameters() if "patch_embed" in name)
    pixels = 2 * patches * embedding if passes == 3 else 0
    assert stage.step.flops - attention - pixels == counted.get_total_flops()


def test_a_stage_takes_its_steps_evaluations_and_files(tiny_model: Path) -> None:
    steps = ("perceive.max_steps=7", "perceive.evaluate_every=2", "perceive.evaluate_from=3", "sft.max_steps=6")
    asking = ("evaluation.stage_questions=16", "checkpoint.supervised_every=3", "sft.evaluate_every=6")
    perceive, dealt, config = stage_of(tiny_model, "perceive", *steps, *asking)
    plan, _ = planned(tiny_model, *LOCAL, "perceive.batch=8", "sft.batch=8", *steps, *asking)
    outline = OutlinedPolicy(tiny_model, "float32", "cuda", config, trained=True)
    clock, weights = Clock(config, outline, gpu(config.plan)), 4 * sum(p.numel() for p in outline.model.parameters())
    # steps 4, 6 and 7 are evaluated, on twice as many questions as demonstrations; 3, 6 and 7 saved, with two moments
    assert perceive.evaluations_s == pytest.approx(3 * 2 * clock.validate(dealt).seconds)
    files_s = (3 * weights + 3 * 3 * weights) / WRITE_BYTES_PER_S
    assert perceive.run_s == pytest.approx(7 * clock.fit(dealt).seconds + perceive.evaluations_s + files_s)
    sft = plan.supervised[1]
    _, cache = rollout_role(config.rollout, 0, outline, gpu(config.plan), plan.samples[0])
    answering_s = clock.rollout(asked(plan.samples, 16), cache).seconds
    assert sft.evaluations_s == pytest.approx(clock.publish().seconds + answering_s)  # once, after step 6
    assert plan.all_s == plan.run_s + perceive.run_s + sft.run_s
    assert [sample.prompt.kind for sample in perceive.samples] == ["caption"] * 8 and perceive.drawn


def test_demonstrations_in_files_are_as_large_as_samples_and_a_frozen_encoder_passes_every_time(
    one_layer: Path,
) -> None:
    small = ("plan.medium=video", "data.video.max_frames=8", "plan.response_tokens=16", "sft.batch=4")
    plan, config = planned(one_layer, *VIDEO, *small)
    (sft,) = plan.supervised
    assert not sft.drawn and len({sample.prompt.media for sample in sft.samples}) == len(sft.samples) == 4
    assert {sample.length for sample in sft.samples} == {plan.samples[0].length}
    learner = plan.roles[0]
    assert sft.learner.device == {part: size for part, size in learner.device.items() if part != "media"}
    outline = OutlinedPolicy(one_layer, "bfloat16", "cuda", config, trained=True)
    dealt = plan_updates(sft.samples, updates=1, shards=4, max_tokens=config.learner.pass_tokens)
    slow = replace(gpu(config.plan), flops_per_s=1e9, link_bytes_per_s=1e30)
    clock = Clock(config, outline, slow)
    counter = FlopCounter(outline.model, outline.family)
    text = sum(text_flops(counter, part) for shard in dealt.updates[0].shards for part in shard)
    vision = counter.vision(outline.family.layout(medium) for s in sft.samples for medium in s.prompt.media)
    assert clock.fit(dealt).flops == 4 * text + vision  # with checkpoints once more forward
    assert clock.fit(dealt).seconds == pytest.approx((4 * text + vision) / 4 / 1e9 + preprocess_s(sft.samples) / 4)


def test_the_learner_of_the_stage_that_needs_most_is_refused(one_layer: Path) -> None:
    a_part = ("learner.world_size=1", "cluster.gpus_per_learner=0.09")
    settings = (*VIDEO, *SMALL_STEP, "stages=[sft,rl]", "sft.batch=128", *a_part)
    plan, _ = planned(one_layer, *settings)
    sft, rl = plan.supervised[0].learner, plan.roles[0]
    assert rl.total < 0.95 * 0.09 * plan.device.bytes < sft.total
    (problem,) = plan.problems
    assert problem.startswith("the learner in sft needs 10.6 GiB of 6.81 on an H100; lower learner.max_tokens")


def test_a_shared_gpu_has_room_for_the_learner_of_every_stage() -> None:
    rl = Role("learner", 1, 1, {"weights": 5}, {"update": 6, "publish": 1}, {})
    engine = Role("rollout", 1, 1, {"weights": 5}, {"generate": 3, "load": 2}, {})
    reference = Role("reference", 1, 1, {"weights": 5}, {"score": 4}, {})
    sft = replace(rl, name="learner in sft", phases={"update": 50})
    assert on_shared_device([rl, engine, reference], [])["train"] == CONTEXT + 11 + 9
    assert on_shared_device([rl, engine, reference], [sft])["train"] == CONTEXT + 55  # which has no reference
