"""What passes hold, planned on outlines, against what they do hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.profiler import ProfilerActivity, profile

from ral_system.config.commands import PlanCommandConfig
from ral_system.device_kind import meta_stands_for
from ral_system.errors import ConfigError
from ral_system.planning.outline import OUTLINE, Outlines
from ral_system.planning.passes import OutlinedPolicy, new_policy, objective_of, score_pass, update_pass
from ral_system.planning.workload import step_samples
from ral_system.tasks.visual_search import words
from ral_system.training.gradient_share import squared_norms
from ral_system.types import Media, Sample
from tests.composed import compose_config
from tests.tiled_models import TILED
from tests.unit.planning.models import write_7b

LORA = "learner.lora={{rank: 4, alpha: 8, targets: {}, vision: {}}}"
SHAPES = {
    "quickstart": (),
    "one response": ("algorithm.completions_per_prompt=2", "algorithm.prompts_per_step=8", "algorithm.deal=samples"),
    "no picture": ("plan.medium=none",),
    "trained on long prompts": ("plan.text_tokens=600",),
    "frozen vision": ("model.freeze_vision=true",),
    "adapters": ("stages=[rl]", LORA.format("[q_proj, k_proj, down_proj]", "false")),
    "adapters everywhere": ("stages=[rl]", LORA.format("[q_proj, down_proj, qkv, mlp.2]", "true")),
    "adapters and checkpoints": (
        *("stages=[rl]", "learner.gradient_checkpointing=true", LORA.format("[q_proj, v_proj]", "false")),
    ),
    "checkpoints": ("learner.gradient_checkpointing=true",),
    "each head, all layers": ("algorithm.attention.heads=each", "algorithm.attention.layers=all"),
    "top entries": ("algorithm.attention.record=top_k", "algorithm.attention.top_k=16"),
    "evidence": ("algorithm=ease",),
    "no attention term": ("algorithm=grpo",),
    "credit": ("algorithm=attention_credit", "algorithm.attention.heads=each"),
    "group anchor, of prompts": ("algorithm=group_anchor", "algorithm.attention.keys=prompt"),
    "videos": ("data=video_search",),
}


def plan_for(folder: Path, *overrides: str) -> tuple[OutlinedPolicy, PlanCommandConfig]:
    config = compose_config(*overrides, kind=PlanCommandConfig)
    kind = "cpu" if config.plan.device == "cpu" else "cuda"
    return OutlinedPolicy(folder, config.learner.dtype, kind, config, trained=True), config


def measured(call: Callable[[], object]) -> int:
    """Bytes that CPU tensors hold at the highest, beside those from before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5", "glm4v"])
def test_passes_of_other_families_hold_what_is_planned(request: pytest.FixtureRequest, family: str) -> None:
    folder = request.getfixturevalue(f"{family}_folder")
    check_passes(folder, "data=video_search")


@pytest.mark.parametrize(
    ("family", "data"),
    [
        pytest.param(family, data, marks=[] if data == "visual_search" or family == "internvl" else pytest.mark.long)
        for family, tiled in TILED.items()
        for data in ("visual_search", "video_search")
        if tiled.videos or data == "visual_search"
    ],
)
def test_passes_over_tiles_hold_what_is_planned(tmp_path: Path, family: str, data: str) -> None:
    TILED[family].build(tmp_path, words())
    check_passes(tmp_path, f"data={data}")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tiny_models_passes_hold_what_is_planned(tiny_model: Path, shape: str) -> None:
    check_passes(tiny_model, *SHAPES[shape])


def check_passes(folder: Path, *overrides: str) -> None:
    common = ("plan.device=cpu", "plan.text_tokens=60", "plan.response_tokens=24", "rollout.max_model_len=1024")
    outline, config = plan_for(folder, *common, *overrides)
    samples = step_samples(config, config.plan, outline.family)[:8]
    policy = new_policy(outline.family, "float32", torch.device("cpu"), config, trained=True)
    scores = {sample.id: outline.blank_scores(sample) for sample in samples}
    batch = outline.collate(samples)
    copied = sum(part.nbytes for part in batch.features.values())  # to the device, which here is where they are
    found = measured(lambda: update_pass(policy, batch, samples, scores, config, outline.read))
    assert outline.update(samples).peak == pytest.approx(found + copied, rel=0.1)
    found = measured(lambda: score_pass(policy, batch, [outline.read]))
    assert outline.score(samples, [outline.read]).peak == pytest.approx(found + copied, rel=0.1)


def test_measuring_the_gradients_share_holds_what_is_planned(tiny_model: Path) -> None:
    settings = ("cluster=local", "learner.gradient_checkpointing=true", "algorithm.attention.weight=5")
    outline, config = plan_for(
        tiny_model, *settings, "plan.device=cpu", "plan.text_tokens=60", "plan.response_tokens=40"
    )
    samples = step_samples(config, config.plan, outline.family)[:8]
    policy = new_policy(outline.family, "float32", torch.device("cpu"), config, trained=True)
    scores, read = {s.id: outline.blank_scores(s) for s in samples}, replace(outline.read, whole=True)
    batch = outline.collate(samples)

    def share() -> None:
        found, output = objective_of(policy, batch, samples, scores, config, read)
        squared_norms(found, output.probed)

    copied = sum(part.nbytes for part in batch.features.values())
    assert outline.share(samples).peak == pytest.approx(measured(share) + copied, rel=0.1)


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_ranks_that_share_a_pass_hold_their_part_of_it(tiny_model: Path, frozen: str) -> None:
    long = ("plan.text_tokens=900", "plan.response_tokens=20", "rollout.max_model_len=1024")
    overrides = ("data=video_search", "plan.device=cpu", *long, f"model.freeze_vision={frozen}")
    held = []
    for together in (1, 2):
        settings = ("learner.world_size=2", f"learner.sequence_parallel={together}")
        outline, config = plan_for(tiny_model, *overrides, *settings)
        samples = step_samples(config, config.plan, outline.family)[:8]
        media = [samples[0].prompt.media[0]]
        encode, encoded = outline.encode(media)
        update = outline.update(samples, encoded if frozen == "true" else None)
        held.append([encode.peak, encode.kept, outline.score(samples).peak, update.peak])
    (encode, kept, score, update), (own_encode, own_kept, own_score, own_update) = held
    assert own_kept == kept and own_encode < 0.9 * encode  # every rank has all pixels and all embeddings
    for own, whole in ((own_score, score), (own_update, update)):
        assert whole / 2 < own < 0.75 * whole


def test_encoding_is_planned_as_the_rank_with_most_does_it(tiny_model: Path) -> None:
    outline, _ = plan_for(tiny_model, "plan.device=cpu", "learner.world_size=2", "learner.sequence_parallel=2")
    large, small = Media("a", 224, 224), Media("b", 28, 28)
    (first, _), (last, _), (alone, _) = (outline.encode(of) for of in ([large, small], [small, large], [small]))
    assert first.peak == pytest.approx(last.peak, rel=0.05) and first.peak > 2 * alone.peak


def test_heads_that_ranks_cannot_share_are_one_line(tiny_model: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_for(tiny_model, "learner.world_size=3", "learner.sequence_parallel=3")
    assert str(refused.value) == (
        "learner.sequence_parallel=3 does not divide the model's 2 attention heads; set it to one of 1, 2"
    )


def test_what_was_encoded_is_kept(tiny_model: Path) -> None:
    outline, config = plan_for(tiny_model, "plan.device=cpu", "plan.text_tokens=20")
    media = [sample.prompt.media[0] for sample in step_samples(config, config.plan, outline.family)[::8]]
    held, encoded = outline.encode(media)
    assert held.kept == sum(part.nbytes for part in encoded.values()) == len(media) * 9 * 64 * 4 < held.peak


def check_7b(outline: OutlinedPolicy, config: PlanCommandConfig, samples: tuple[Sample, ...]) -> None:
    policy = new_policy(outline.family, "bfloat16", OUTLINE, config, trained=True)
    scores = {sample.id: outline.blank_scores(sample) for sample in samples}
    batch = outline.collate(samples)
    with meta_stands_for("cuda"), Outlines(), MemTracker() as tracker:
        update_pass(policy, batch.to(OUTLINE), samples, scores, config, outline.read)
    found = tracker.get_tracker_snapshot("peak")[OUTLINE]
    weights = sum(p.nbytes for p in policy.parameters())
    assert outline.update(samples).peak == pytest.approx(found["Total"] - weights, rel=0.1)


@pytest.mark.long
def test_passes_of_7b_layers_hold_what_torchs_tracker_finds(tiny_model: Path, tmp_path: Path) -> None:
    folder = write_7b(tmp_path / "model", tiny_model, layers=2, vocabulary=32768, depth=8)
    overrides = ("model.freeze_vision=false", "plan.medium=none", "plan.text_tokens=900", "plan.response_tokens=32")
    outline, config = plan_for(folder, "experiment=ral_qwen2_5_vl_7b_8gpu", *overrides)
    check_7b(outline, config, step_samples(config, config.plan, outline.family)[:8])


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_7bs_passes_hold_what_torchs_tracker_finds(tiny_model: Path, tmp_path: Path) -> None:
    folder = write_7b(tmp_path / "model", tiny_model)
    overrides = ("model.freeze_vision=false", "plan.medium=none", "plan.text_tokens=7000")
    outline, config = plan_for(folder, "experiment=ral_qwen2_5_vl_7b_8gpu", *overrides)
    check_7b(outline, config, step_samples(config, config.plan, outline.family)[:8])


def test_integers_stay_real_and_fractions_have_no_memory() -> None:
    with Outlines() as outlines:
        positions = torch.arange(5, device=OUTLINE)
        weights = torch.zeros(5, 1000)
        chosen = weights[positions % 2 == 0]
        flags = torch.tensor([True, False, True], device=OUTLINE)
        assert positions.tolist() == [0, 1, 2, 3, 4] and flags.tolist() == [True, False, True]
        assert chosen.shape == (3, 1000) and chosen.device == OUTLINE
        assert weights.to("cpu").device == OUTLINE and weights[flags.nonzero()[:, 0]].shape == (2, 1000)
        assert float(weights.sum()) == 0.0
        assert outlines.peak_bytes >= 4 * 8000
        del weights, chosen
        assert outlines.held_bytes == 0


def test_repeated_operations_make_what_they_made_before() -> None:
    def run() -> list[torch.Tensor]:
        x = torch.zeros(4, 6)
        y = x.t() + 1.0
        return [
            x,
            y,
            x[:, 1:],
            x.view(6, 4),
            x.double() * 2,
            x > 0.5,
            torch.cat([x, x]),
            y.add_(1),
            x @ y,
            x.split(2)[1],
        ]

    expected = [(t.shape, t.stride(), t.dtype) for t in run()]
    for _ in range(3):
        with Outlines() as outlines:
            made = run()
        assert [(t.shape, t.stride(), t.dtype) for t in made] == expected
        assert made[2].untyped_storage()._cdata == made[3].untyped_storage()._cdata == made[0].untyped_storage()._cdata
        assert outlines.held_bytes == 4 * 24 * 2 + 8 * 24 + 24 + 4 * 48 + 4 * 16  # views have no memory
