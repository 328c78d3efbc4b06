"""Plans of whole runs."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ral_system.config.commands import PlanCommandConfig
from ral_system.errors import ConfigError
from ral_system.models.loading import load_family
from ral_system.planning.devices import gpu
from ral_system.planning.memory import Weights, gib, rollout_role, states
from ral_system.planning.page import print_plan
from ral_system.planning.passes import OutlinedPolicy
from ral_system.planning.plan import Plan
from ral_system.planning.seconds import Clock
from ral_system.planning.workload import asked, blinded_plan, largest_medium, step_samples
from ral_system.training.plan import plan_updates
from tests.composed import compose_config
from tests.unit.planning.models import FEW, LORA, SMALL_STEP, VIDEO, planned


def test_a_step_is_as_large_as_the_settings_allow(one_layer: Path) -> None:
    config = compose_config(*VIDEO, "plan.text_tokens=150", kind=PlanCommandConfig)
    outline = OutlinedPolicy(one_layer, "bfloat16", "cuda", config, trained=True)
    samples = step_samples(config, config.plan, outline.family)
    (medium,) = samples[0].prompt.media
    assert (len(samples), len({s.prompt.media for s in samples})) == (64, 8)
    assert medium.frames == 128 and medium.width_px * medium.height_px == 128 * 28 * 28
    assert samples[0].prompt.visual_tokens == 64 * 128 and len(samples[0].prompt.token_ids) == 8192 + 150
    assert len(samples[0].response_token_ids) == 400  # the experiment's assumption
    longest = config.plan.model_copy(update={"response_tokens": None})
    assert len(step_samples(config, longest, outline.family)[0].response_token_ids) == 1024
    assert outline.family.problem(samples[0].prompt.token_ids, (medium,)) is None
    picture = config.plan.model_copy(update={"medium": "image"})
    assert largest_medium(config.data, picture, outline.family) is not None
    assert 4900 < step_samples(config, picture, outline.family)[0].prompt.visual_tokens <= 5120
    none = config.plan.model_copy(update={"medium": "none", "response_tokens": 7})
    alone = step_samples(config, none, outline.family)
    assert alone[0].prompt.media == () and len(alone[0].response_token_ids) == 7


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("rollout.max_model_len=8200", "rollout.max_new_tokens=100"), "rollout.max_model_len=8200: a prompt has 8192"),
        (("plan.response_tokens=2000",), "plan.response_tokens=2000: a response has at most 1024"),
        (("plan.device=cpu",), "plan.device=cpu: an update is tried on this machine"),
    ],
)
def test_what_cannot_be_planned_is_one_line(one_layer: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(one_layer, *VIDEO, *overrides)


def test_data_without_videos_has_none_to_plan_for(one_layer: Path) -> None:
    with pytest.raises(ConfigError, match=r"plan\.medium=video: data=visual_search has none; leave it null"):
        planned(one_layer, "experiment=ral_qwen2_5_vl_7b_8gpu", "plan.medium=video")


@pytest.mark.parametrize(("families", "tokens"), [("[search]", 144), ("[compare,search]", 200), ("[needle]", 48)])
def test_the_largest_of_the_tasks_that_need_looking_is_planned(tiny_model: Path, families: str, tokens: int) -> None:
    looking = ("data=looking", f"data.families={families}", "data.difficulty=[5,1]")
    config, family = compose_config(*looking, kind=PlanCommandConfig), load_family(tiny_model)
    medium = largest_medium(config.data, config.plan, family)
    assert medium is not None and family.tokens(medium) == tokens


def test_roles_that_do_not_fit_are_named_with_what_to_change(one_layer: Path) -> None:
    fits, _ = planned(one_layer, *VIDEO, *SMALL_STEP)
    assert fits.problems == []
    a_part = (*VIDEO, *SMALL_STEP, "learner.world_size=1")
    crowded, _ = planned(one_layer, *a_part, "cluster.gpus_per_learner=0.02", "cluster.gpus_per_scorer=0")
    learner, reference = crowded.problems
    assert learner.startswith("the learner") and "GiB of 1.51 on an H100; lower learner.max_tokens" in learner
    assert reference == "cluster.gpus_per_scorer=0: the reference would run on a CPU; set it to 1, or plan.device=cpu"
    assert all(role.device["context"] == 2**30 for role in fits.roles)
    learner = planned(one_layer, *a_part)[0].roles[0]
    share = learner.total / (79.6 * 2**30)  # a GPU is full at 95 %
    for more, problems in ((1.06, 0), (1.04, 1)):
        full, _ = planned(one_layer, *a_part, f"cluster.gpus_per_learner={share * more}")
        assert len(full.problems) == problems
    tight, _ = planned(one_layer, *VIDEO, *SMALL_STEP, "rollout.gpu_memory_utilization=0.02")
    assert ["rollout.max_model_len=10240" in problem for problem in tight.problems] == [True]


def test_a_group_that_is_cut_is_advised_against(one_layer: Path) -> None:
    small = ("stages=[rl]", "plan.medium=video", "data.video.max_frames=8", "plan.response_tokens=16")
    cut, _ = planned(one_layer, *VIDEO, *small, "learner.max_tokens=1300")
    assert cut.advice[0].startswith("learner.max_tokens=1300: a group takes 1352, visual tokens twice, and is cut")
    whole, _ = planned(one_layer, *VIDEO, *small, "rollout.workers=4")
    assert whole.advice == []


def test_engines_share_out_weights_gradients_and_optimiser() -> None:
    weights = Weights(all=1000, trained=800, bytes_each=2)

    def of(*overrides: str) -> tuple[dict[str, int], dict[str, int]]:
        config = compose_config("experiment=ral_qwen2_5_vl_7b_8gpu", *overrides)
        return states(config.learner, weights, "cpu")

    shared = {"gradients": 4 * 800 // 4, "optimiser": 12 * 800 // 4}
    assert of() == ({"weights": 500, "buffers": 2 * 800 + 2 * 1000} | shared, {})
    assert of("learner.zero_stage=2") == ({"weights": 2000 + 1600, "buffers": 1600} | shared, {})
    assert of("learner.offload=optimizer") == ({"weights": 500, "buffers": 3600}, shared)
    assert of("learner.offload=optimizer_and_parameters") == ({"buffers": 3600}, {"weights": 500} | shared)
    torch_config = compose_config("cluster=local")
    assert states(torch_config.learner, replace(weights, bytes_each=4), "cpu") == (
        {"weights": 4000, "gradients": 3200, "optimiser": 6400},
        {},
    )


def test_a_gpu_holds_deepspeeds_bucket_whole() -> None:
    learner = compose_config("experiment=ral_qwen2_5_vl_7b_8gpu").learner
    device, _ = states(learner, Weights(2_000_000_000, 2_000_000_000, 2), "cuda")
    assert device["buffers"] == 2 * 500_000_000 + 2 * 1_050_000_000


def test_adapters_alone_have_gradients_and_learners_are_the_reference(one_layer: Path) -> None:
    whole, config = planned(one_layer, *VIDEO, *SMALL_STEP)
    adapted, with_adapters = planned(one_layer, *VIDEO, *SMALL_STEP, LORA)
    assert [role.name for role in whole.roles] == ["learner", "rollout", "reference"]
    assert [role.name for role in adapted.roles] == ["learner", "rollout"]
    numbers = 4 * sum(3584 + width for width in (3584, 512, 512, 3584))
    learner, ranks = adapted.roles[0], config.learner.world_size
    assert (learner.device["gradients"], learner.device["optimiser"]) == (numbers * 4 // ranks, numbers * 12 // ranks)
    assert learner.device["weights"] == whole.roles[0].device["weights"] + 2 * numbers // ranks
    assert learner.phases["reference"] <= learner.phases["score"]
    merged = learner.phases["publish"] - whole.roles[0].phases["publish"]
    assert merged == (4 + 2) * 3584 * 3584  # in float32 and in bfloat16
    assert adapted.roles[1].device == whole.roles[1].device
    assert adapted.checkpoint_bytes == (2 + 12) * numbers
    seconds, before = ({phase.name: phase for phase in plan.phases} for plan in (adapted, whole))
    assert list(seconds) == ["rollout", "old log-probs", "reference", "updates", "publish"]
    assert seconds["reference"].flops == pytest.approx(before["reference"].flops, rel=0.01)
    assert seconds["publish"].seconds < before["publish"].seconds
    own = Weights.of(OutlinedPolicy(one_layer, "bfloat16", "cuda", with_adapters, trained=True).model)
    assert own.sent == 2 * 3584 * 3584 + 2 * 3584 * 512 and own.adapters == own.trained == numbers
    share = config.algorithm.attention.gradient_share_every
    measured = 1 / share if share else 0
    expected = (3 + measured) / (4 + measured)  # only adapters have gradients of weights
    assert seconds["updates"].flops / before["updates"].flops == pytest.approx(expected, rel=0.01)


def page(plan: Plan, config: PlanCommandConfig) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_plan(config, plan, console)
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def test_a_page_compares_reserved_cores_with_those_of_a_node(one_layer: Path) -> None:
    settings = (*VIDEO, *SMALL_STEP, "plan.node_gpus=4")
    compared, alone = (
        " ".join(re.sub("[│┃┡╇┩━└┴┘─]", "", page(*planned(one_layer, *settings, *more))).split())
        for more in (("plan.host_cores=16",), ())
    )
    head = "CPU cores that Ray reserves learner rollout reference verifiers total limit"
    assert f"{head} fullest node 8 0 0 4 12 16 all 2 nodes 8 6 2 4 20 " in compared
    assert f"{head} fullest node 8 0 0 4 12 all 2 nodes 8 6 2 4 20 " in alone


def test_a_gpu_of_another_size_is_planned_for(one_layer: Path) -> None:
    fits, config = planned(one_layer, *VIDEO, *SMALL_STEP, "plan.gpu_gib=24")
    named = gpu(config.plan.model_copy(update={"gpu_gib": None}))
    assert gpu(config.plan) == replace(named, name="H100 with 24 GiB", bytes=24 * 2**30)
    assert not fits.problems and fits.roles[1].total <= 24 * 2**30
    small, _ = planned(one_layer, *VIDEO, *SMALL_STEP, "plan.gpu_gib=4")
    assert "GiB of 3.8 on an H100 with 4 GiB; lower learner.max_tokens" in small.problems[0]


def test_a_page_says_when_frozen_models_work_if_there_are_any(one_layer: Path) -> None:
    settings = (*VIDEO, *SMALL_STEP)
    assert "learners wait for engines, frozen models beside the engines. " in page(*planned(one_layer, *settings))
    assert "learners wait for engines. " in page(*planned(one_layer, *settings, LORA))


def test_frozen_models_work_beside_engines_unless_batches_are_picked_or_made_ahead(one_layer: Path) -> None:
    turns, _ = planned(one_layer, *VIDEO, *SMALL_STEP)
    picked, _ = planned(one_layer, *VIDEO, *SMALL_STEP, "algorithm.sampling_rounds=2")
    beside, _ = planned(one_layer, *VIDEO, *SMALL_STEP, "algorithm.max_staleness=1")
    rollout, reference, *learning = (phase.seconds for phase in turns.phases)
    assert turns.step_s == pytest.approx(max(rollout, reference) + reference + sum(learning))  # one bundle
    assert picked.step_s == pytest.approx(rollout + reference + sum(learning))
    assert "algorithm.sampling_rounds=2: one is counted" in picked.advice[0]
    rollout, *others = (phase.seconds for phase in beside.phases)
    assert beside.step_s == pytest.approx(max(rollout, sum(others)))
    (learner, *_) = beside.roles
    weights = Weights.of(OutlinedPolicy(one_layer, "bfloat16", "cuda", compose_config(*VIDEO), trained=True).model)
    assert "published" not in turns.roles[0].once  # there it goes from device to device
    assert learner.once["published"] == 2 * weights.bytes
    assert learner.host["past weights"] == pytest.approx(2 * turns.roles[0].device["optimiser"] / 12 * 2, rel=1e-6)


def test_roles_that_take_turns_must_fit_phase_by_phase(one_layer: Path) -> None:
    turns = (
        *("cluster.placement=colocated", "learner.world_size=3", "rollout.workers=3", "cluster.scorers=3"),
        "algorithm.prompts_per_step=9",
    )
    plan, config = planned(one_layer, *VIDEO, *SMALL_STEP, *turns)
    learner, engine, reference = plan.roles
    assert not plan.problems
    assert plan.shared == {
        "generate": engine.total + 2 * 2**30,
        "train": learner.total + reference.total + 2**30,
        "publish": learner.device["weights"]
        + engine.device["weights"]
        + learner.phases["publish"]
        + engine.phases["load"]
        + 3 * 2**30,
    }
    of_phases = ", ".join(f"{phase} {gib(size)}" for phase, size in plan.shared.items())
    assert f"GiB on a shared GPU: {of_phases}; limit 75.6." in page(plan, config)
    phases = {phase.name: phase.seconds for phase in plan.phases}
    leaves = sum(learner.device[part] for part in ("weights", "gradients", "optimiser")) + reference.device["weights"]
    assert phases["move"] == pytest.approx(2 * leaves / 55e9)
    assert plan.step_s == pytest.approx(sum(phases.values()))  # one after another
    of_two = ("learner.world_size=4", "rollout.workers=2", "rollout.tensor_parallel=2", "cluster.gpus_per_rollout=2")
    halved, _ = planned(one_layer, *VIDEO, *SMALL_STEP, *turns, *of_two, "algorithm.prompts_per_step=8")
    assert not halved.problems
    rank = halved.roles[1]
    assert rank.device["weights"] == engine.device["weights"] // 2
    assert halved.shared["generate"] == rank.total + 2 * 2**30
    full, _ = planned(one_layer, *VIDEO, *SMALL_STEP, *turns, "rollout.gpu_memory_utilization=0.99")
    (problem,) = full.problems
    assert "cluster.placement=colocated: to generate, a GPU needs 80.8 GiB of 75.6; lower rollout.gpu_m" in problem


def test_what_reads_more_attention_or_keeps_more_weights_needs_more(one_layer: Path) -> None:
    small = ("stages=[rl]", "plan.medium=none", "plan.text_tokens=300", "plan.response_tokens=64")
    plain, _ = planned(one_layer, *VIDEO, *small)
    averaged, _ = planned(one_layer, *VIDEO, *small, "algorithm.attention.anchor=ema")
    trained = plain.roles[0].device["optimiser"] / 12
    assert averaged.roles[0].device["average"] == pytest.approx(6 * trained, rel=1e-6)
    score = {phase.name: phase.flops for phase in plain.phases}["old log-probs"]
    assert {phase.name: phase.flops for phase in averaged.phases}["old log-probs"] == 2 * score
    assert averaged.checkpoint_bytes > plain.checkpoint_bytes


def test_a_blinded_view_is_one_more_pass_and_with_masks_of_their_own_one_for_each_response(tiny_model: Path) -> None:
    found = {}
    for name, medium in (("grpo", "image"), ("vgpo", "image"), ("papo", "image"), ("vppo", "image"), ("papo", "none")):
        overrides = (f"algorithm={name}", f"plan.medium={medium}", "plan.text_tokens=60", "plan.response_tokens=64")
        config = compose_config("cluster=local", *overrides, kind=PlanCommandConfig)
        outline = OutlinedPolicy(tiny_model, "float32", "cpu", config, trained=True)
        samples = step_samples(config, config.plan, outline.family)
        dealt = plan_updates(samples, updates=4, shards=1, max_tokens=config.learner.pass_tokens)
        blinded, clock = (
            blinded_plan(config.algorithm.perception, config.learner, dealt, outline.family),
            Clock(config, outline, gpu(config.plan)),
        )
        found[name, medium] = blinded and clock.blinded(blinded).flops / clock.score(dealt).flops
    assert found["grpo", "image"] is found["vgpo", "image"] is found["papo", "none"] is None
    assert found["papo", "image"] == 1
    assert 2 < found["vppo", "image"] < config.algorithm.completions_per_prompt


@pytest.mark.parametrize("algorithm", ["ease", "sharpening", "vgpo"])
def test_objectives_that_read_more_are_planned(tiny_model: Path, algorithm: str) -> None:
    small = ("cluster=local", "stages=[rl]", *FEW, "plan.device=a100", "plan.text_tokens=20", "plan.response_tokens=8")
    plan, _ = planned(tiny_model, *small, f"algorithm={algorithm}")
    assert {phase.name: phase.flops for phase in plan.phases}["updates"] > 0


def test_a_blinded_view_has_its_time_and_its_memory_in_the_plan(tiny_model: Path) -> None:
    small = ("cluster=local", "stages=[rl]", *FEW, "plan.device=a100", "plan.text_tokens=20", "plan.response_tokens=8")
    plan, _ = planned(tiny_model, *small, "algorithm=papo", "model.freeze_vision=true")
    assert [phase.name for phase in plan.phases][2:4] == ["old log-probs", "blinded view"]
    learner = plan.roles[0].phases
    assert learner["blinded view"] > learner["encode"]  # which it does once more


def test_visual_rewards_hold_the_attention_of_all_layers(tiny_model: Path) -> None:
    small = ("cluster=local", "stages=[rl]", "plan.device=a100", "algorithm.prompts_per_step=4", "plan.text_tokens=60")
    small = (*small, "plan.response_tokens=64")
    plain, _ = planned(tiny_model, *small)
    policy, _ = planned(tiny_model, *small, "reward.visual.weight=0.5", "reward.visual.model=policy")
    reference, _ = planned(tiny_model, *small, "reward.visual.weight=0.5", "reward.visual.model=reference")
    score = [[role.phases["score"] for role in (plan.roles[0], plan.roles[-1])] for plan in (plain, policy, reference)]
    same = pytest.approx(score[0], rel=0.03)  # whichever pass comes first makes the masks that all share
    assert score[1][0] > 1.05 * score[0][0] and [score[0][0], score[1][1]] == same
    assert score[2][1] > 1.05 * score[0][1] and [score[2][0], score[0][1]] == same


def test_one_process_has_one_gpu_for_all_roles(tiny_model: Path) -> None:
    small = ("cluster=local", "stages=[rl]", *FEW, "plan.text_tokens=20", "plan.response_tokens=8", "plan.device=a100")
    fits, _ = planned(tiny_model, *small)
    assert fits.problems == []
    huge, _ = planned(tiny_model, *small, "rollout.max_sequences=100000000")
    assert huge.problems[0].startswith("all roles together need ") and "on A100" in huge.problems[0]


def test_engines_on_cpus_and_runs_without_rl_are_refused(one_layer: Path) -> None:
    on_cpu = ("rollout.tensor_parallel=2", "cluster.gpus_per_rollout=0", "rollout.memory_gib=1")
    apart = ("rollout.gpu_memory_utilization=0.85", "rollout.weight_transfer=object_store")
    lacking, _ = planned(one_layer, *VIDEO, *SMALL_STEP, *on_cpu, *apart)
    assert lacking.problems[0] == (
        "cluster.gpus_per_rollout=0: the rollout would run on a CPU; set it to 2, or plan.device=cpu"
    )
    with pytest.raises(ConfigError, match="what is planned is the rl stage; add it"):
        planned(one_layer, *VIDEO, *SMALL_STEP, "stages=[sft]")


def test_evaluations_are_counted_before_inside_and_after(one_layer: Path) -> None:
    small = (*SMALL_STEP, "algorithm.steps=11")
    asking = ("evaluation.questions=40", "evaluation.every_questions=10", "evaluation.every=2", "evaluation.blind=true")
    plan, config = planned(one_layer, *VIDEO, *small, *asking)
    outline = OutlinedPolicy(one_layer, "bfloat16", "cuda", config, trained=True)
    device, samples = gpu(config.plan), step_samples(config, config.plan, outline.family)
    _, cache = rollout_role(config.rollout, config.cluster.gpus_per_rollout, outline, device, samples[0])

    def seconds(questions: int) -> float:
        found = asked(samples, questions)
        assert len({s.id for s in found}) == len({s.prompt.id for s in found}) == questions
        return Clock(config, outline, device).rollout(found, cache).seconds

    assert plan.evaluations_s == pytest.approx(2 * (2 * seconds(40) + 5 * seconds(10)))  # step 10 is not the last
    assert plan.run_s == pytest.approx(11 * plan.step_s + plan.evaluations_s)  # too short for a checkpoint
