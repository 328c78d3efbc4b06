import pytest

from ral_system.actors.placement import (
    Bundle,
    devices,
    joined,
    node_by_node,
    plan,
    preflight,
    reserved_together,
    shortage,
)
from ral_system.config.choices import Stage
from ral_system.config.commands import TrainConfig
from ral_system.config.teacher import TeacherRole
from ral_system.errors import SetupError
from tests.composed import compose_config


def planned(config: TrainConfig, stage: Stage) -> list[Bundle]:
    frozen = {"reference": config.starts_reference, "teachers": len(config.teachers)}
    return plan(config.cluster, config.rollout, config.learner, stage, **frozen)


def test_one_bundle_per_actor_of_the_stage() -> None:
    gpus = ("cluster.gpus_per_learner=1", "rollout.weight_transfer=object_store")
    config = compose_config("rollout.workers=2", "learner.world_size=2", *gpus)
    assert planned(config, "rl") == [
        Bundle("learner", 0, 0.5, 1),
        Bundle("learner", 1, 0.5, 1),
        Bundle("rollout", 0, 0.5, 0),
        Bundle("rollout", 1, 0.5, 0),
        Bundle("reference", 0, 0.125, 0),
        Bundle("reward", 0, 0.125, 0),
    ]
    assert [b.role for b in planned(config, "sft")] == ["learner", "learner", "rollout", "rollout", "reward"]
    assert "reference" not in {b.role for b in planned(compose_config("algorithm.kl.coefficient=0"), "rl")}


def test_the_quickstart_fits_two_cores() -> None:
    preflight(planned(compose_config("experiment=quickstart"), "rl"), [{"CPU": 2.0}])


def test_two_teachers_are_two_actors_of_the_rl_stage_and_fit_beside_the_quickstart() -> None:
    config = compose_config("experiment=quickstart", "algorithm=attention_distill", "teacher.path=/a")
    assert [b.name for b in planned(config, "rl") if b.role == "teacher"] == ["teacher 0"]
    config = compose_config(
        "experiment=quickstart", "algorithm=attention_distill", "teacher.path=/a", "teacher.attention_path=/b"
    )
    assert [b.name for b in planned(config, "rl") if b.role == "teacher"] == ["teacher 0", "teacher 1"]
    assert "teacher" not in {b.role for b in planned(config, "sft")}
    preflight(planned(config, "rl"), [{"CPU": 2.0}])


def test_the_paper_set_up_fills_one_node_of_eight_gpus() -> None:
    config = compose_config("experiment=ral_qwen2_5_vl_7b_8gpu")
    assert config.data.glance_share == 0  # no demonstration is careless
    assert (config.algorithm.kl.coefficient, config.algorithm.completions_per_prompt) == (0.04, 8)
    assert (config.learner.learning_rate, config.model.freeze_vision) == (1e-5, True)
    bundles = planned(config, "rl")
    assert sum(b.gpus for b in bundles) == devices(bundles) == 8
    assert [b.role for b in bundles if b.gpus] == ["learner"] * 4 + ["rollout"] * 3 + ["reference"]
    preflight(bundles, [{"CPU": 64.0, "GPU": 8.0}])
    with pytest.raises(SetupError, match="needs 8 GPUs"):
        preflight(bundles, [{"CPU": 64.0, "GPU": 4.0}])


@pytest.mark.parametrize("size", ["3b", "7b"])
@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_the_recipes_for_one_gpu_fit_a_machine_of_eight_cores(size: str, stage: Stage) -> None:
    bundles = planned(compose_config(f"experiment=ral_qwen2_5_vl_{size}_1gpu"), stage)
    assert [bundle.role for bundle in bundles] == ["learner", "rollout", "reward"]
    places = [joined([bundles[at] for at in together]) for together in reserved_together(bundles)]
    preflight(places, [{"CPU": 8.0, "GPU": 1.0}])


def test_devices_are_gpus_or_processes_with_a_model() -> None:
    config = compose_config("rollout.workers=2", "learner.world_size=2")
    assert devices(planned(config, "rl")) == 5  # two learners, two engines, the reference
    assert devices(planned(compose_config("experiment=video_r1_qwen2_5_vl_7b_8gpu"), "rl")) == 8  # shared by roles
    assert devices([Bundle("learner", 0, 1, 0.5), Bundle("reference", 0, 1, 0.25), Bundle("reward", 0, 1, 0)]) == 0.75


def test_attention_distillation_of_the_paper_fills_one_node_too() -> None:
    config = compose_config("experiment=attention_distill_qwen2_5_vl_32b_to_7b")
    assert config.teachers == (
        TeacherRole("teacher.path", "Qwen/Qwen2.5-VL-32B-Instruct", tokens=True, attention=True),
    )
    assert (config.teacher.dtype, config.algorithm.distillation.attention.reduction) == ("bfloat16", "sequence_sum")
    bundles = planned(config, "rl")
    assert [b.role for b in bundles if b.gpus] == ["learner"] * 4 + ["rollout"] * 2 + ["reference", "teacher"]
    preflight(bundles, [{"CPU": 64.0, "GPU": 8.0}])


def test_a_teacher_of_two_gpus_has_them_on_one_node() -> None:
    large = ("teacher.path=Qwen/Qwen2.5-VL-72B-Instruct", "cluster.gpus_per_teacher=2", "rollout.workers=1")
    bundles = planned(compose_config("experiment=attention_distill_qwen2_5_vl_32b_to_7b", *large), "rl")
    assert [(b.role, b.gpus) for b in bundles if b.gpus > 1] == [("teacher", 2)]
    assert devices(bundles) == 8
    preflight(bundles, [{"CPU": 64.0, "GPU": 8.0}])
    preflight(bundles, [{"CPU": 64.0, "GPU": 6.0}, {"CPU": 64.0, "GPU": 2.0}])
    with pytest.raises(SetupError, match=r"teacher 0 needs 2 CPUs, 2 GPUs on one node, and no node has them"):
        preflight(bundles, [{"CPU": 64.0, "GPU": 1.0}] * 8)


def test_every_process_of_the_reference_is_planned_if_there_is_one() -> None:
    config = compose_config("cluster.scorers=2", "cluster.gpus_per_scorer=1")
    assert [b for b in planned(config, "rl") if b.role == "reference"] == [
        Bundle("reference", rank, 0.125, 1) for rank in range(2)
    ]
    assert "reference" not in {b.role for b in planned(config, "sft")}
    without = plan(config.cluster, config.rollout, config.learner, "rl", reference=False, teachers=0)
    assert "reference" not in {b.role for b in without}


def test_a_cluster_that_is_too_small_is_told_by_how_much() -> None:
    config = compose_config("learner.world_size=8", "cluster.gpus_per_learner=1", "cluster.gpus_per_rollout=1")
    with pytest.raises(SetupError) as caught:
        preflight(planned(config, "rl"), [{"CPU": 64.0, "GPU": 4.0}])
    assert str(caught.value) == (
        "the run needs 9 GPUs (learner 8 x 1, rollout 1 x 1), the cluster has 4 GPUs on 1 node(s); "
        "lower cluster.cpus_per_*, cluster.gpus_per_* or worker counts"
    )


def test_everything_that_is_missing_is_named_at_once() -> None:
    bundles = [Bundle("learner", rank, 2, 1) for rank in range(3)] + [Bundle("teacher", i, 1, 0) for i in range(2)]
    with pytest.raises(SetupError) as caught:
        preflight(bundles, [{"CPU": 2.0}])
    assert str(caught.value) == (
        "the run needs 8 CPUs (learner 3 x 2, teacher 2 x 1) and 3 GPUs (learner 3 x 1), the cluster has 2 CPUs and 0 "
        "GPUs on 1 node(s); lower cluster.cpus_per_*, cluster.gpus_per_* or worker counts"
    )
    bundles += [Bundle("rollout", rank, 1, 2) for rank in range(2)]
    with pytest.raises(SetupError) as caught:
        preflight(bundles, [{"CPU": 1.0, "GPU": 1.0}] * 7)
    assert str(caught.value).startswith(
        "the run needs 10 CPUs (learner 3 x 2, teacher 2 x 1, rollout 2 x 1), the cluster has 7 CPUs on 7 node(s); "
        "rollout 0 needs 1 CPU, 2 GPUs on one node, and no node has them; lower "
    )
    bundles[0] = Bundle("learner", 0, 99, 1)  # one of its role that is larger
    lack = shortage(bundles, [{"CPU": 90.0, "GPU": 1.0}] * 7)
    assert lack == (
        "learner 0 needs 99 CPUs, 1 GPU on one node, and no node has them; "
        "rollout 0 needs 1 CPU, 2 GPUs on one node, and no node has them"
    )


def test_an_actor_does_not_span_nodes() -> None:
    sharded = ("rollout.tensor_parallel=2", "rollout.weight_transfer=object_store")
    config = compose_config(*sharded, "cluster.gpus_per_rollout=2")
    with pytest.raises(SetupError, match=r"rollout 0 needs 0.5 CPUs, 2 GPUs on one node, and no node has them"):
        preflight(planned(config, "rl"), [{"CPU": 8.0, "GPU": 1.0}] * 4)


def test_an_actor_without_resources_still_has_a_bundle() -> None:
    assert Bundle("reward", 0, 0, 0).resources() == {"CPU": 0.001}


def colocated(*overrides: str) -> list[Bundle]:
    sharing = ("cluster.placement=colocated", "rollout.workers=2", "learner.world_size=2")
    gpus = ("cluster.gpus_per_learner=1", "cluster.gpus_per_rollout=1", "cluster.gpus_per_scorer=1")
    return planned(compose_config(*sharing, *gpus, *overrides), "rl")


def test_engine_and_learner_of_one_rank_share_a_gpu() -> None:
    bundles = colocated()
    assert bundles == [
        Bundle("learner", 0, 0.5, 1),
        Bundle("learner", 1, 0.5, 1),
        Bundle("rollout", 0, 0.5, 1, learners=(0,)),
        Bundle("rollout", 1, 0.5, 1, learners=(1,)),
        Bundle("reference", 0, 0.125, 1, learners=(0,)),
        Bundle("reward", 0, 0.125, 0),
    ]
    together = reserved_together(bundles)
    assert together == [[0, 2, 4], [1, 3], [5]]
    reserved = [joined([bundles[i] for i in indices]) for indices in together]
    assert [(b.name, b.cpus, b.gpus) for b in reserved] == [
        ("learner + rollout + reference 0", 1.125, 1),
        ("learner + rollout 1", 1.0, 1),
        ("reward 0", 0.125, 0.0),
    ]
    preflight(reserved, [{"CPU": 4.0, "GPU": 2.0}])
    with pytest.raises(SetupError, match="the run needs 2 GPUs"):
        preflight(reserved, [{"CPU": 4.0, "GPU": 1.0}])


def test_an_engine_of_two_ranks_shares_the_gpus_of_two_learners() -> None:
    """A GPU in Ray's books belongs to its learner; all that share it lie on one node."""
    two = ("rollout.tensor_parallel=2", "cluster.gpus_per_rollout=2", "learner.world_size=4", "cluster.scorers=3")
    bundles = colocated(*two)
    assert {b.name: (b.gpus, b.own_gpus, b.learners) for b in bundles if b.role in ("rollout", "reference")} == {
        "rollout 0": (2, 0, (0, 1)),
        "rollout 1": (2, 0, (2, 3)),
        "reference 0": (1, 0, (0,)),
        "reference 1": (1, 0, (1,)),
        "reference 2": (1, 0, (2,)),
    }
    names = [[bundles[i].name for i in indices] for indices in reserved_together(bundles)]
    assert names == [
        ["learner 0", "learner 1", "rollout 0", "reference 0", "reference 1"],
        ["learner 2", "learner 3", "rollout 1", "reference 2"],
        ["reward 0"],
    ]
    reserved = [joined([bundles[i] for i in indices]) for indices in reserved_together(bundles)]
    assert [b.resources() for b in reserved] == [{"CPU": 1.75, "GPU": 2}, {"CPU": 1.625, "GPU": 2}, {"CPU": 0.125}]
    assert devices(bundles) == 4
    preflight(reserved, [{"CPU": 4.0, "GPU": 2.0}] * 2)
    with pytest.raises(SetupError, match=r"needs 1.75 CPUs, 2 GPUs on one node, and no node has them"):
        preflight(reserved, [{"CPU": 4.0, "GPU": 1.0}] * 4)


def test_more_teachers_than_learners_share_their_gpus() -> None:
    teachers = ("algorithm=attention_distill", "teacher.path=/a", "teacher.attention_path=/b")
    bundles = colocated(*teachers, "cluster.gpus_per_teacher=1", "cluster.scorers=2")
    beside = {b.name: b.learners for b in bundles if b.learners}
    assert beside == {
        "rollout 0": (0,),
        "rollout 1": (1,),
        "reference 0": (0,),
        "reference 1": (1,),
        "teacher 0": (0,),
        "teacher 1": (1,),
    }
    assert {b.own_gpus for b in bundles if b.role in ("rollout", "reference", "teacher")} == {0}


def test_without_gpus_or_engines_nothing_is_shared() -> None:
    config = compose_config("cluster.placement=colocated", "rollout.workers=2", "learner.world_size=2")
    assert {b.gpus for b in planned(config, "rl")} == {0}
    assert not any(b.learners for b in planned(config, "perceive"))
    assert len(reserved_together(planned(compose_config(), "rl"))) == len(planned(compose_config(), "rl"))


def test_ranks_of_a_role_fill_one_node_after_another() -> None:
    """Bundles of another role or size keep their places: only what is alike may change."""
    bundles = [Bundle("learner", rank, 1, 1) for rank in range(5)]
    bundles += [Bundle("rollout", 0, 1, 2), Bundle("rollout", 1, 1, 1), Bundle("rollout", 2, 1, 2)]
    nodes = ["b", "a", "c", "a", "b", "a", "c", "b"]
    found, places = node_by_node(bundles, nodes)
    taken = [places[bundle.name] for bundle in bundles]
    assert found == bundles
    assert taken == [0, 4, 1, 3, 2, 7, 6, 5]
    assert [nodes[at] for at in taken] == ["b", "b", "a", "a", "c", "b", "c", "a"]


@pytest.mark.parametrize("scorers", [1, 3, 8])
@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_learners_fill_nodes_where_only_some_have_a_reference_beside_them(scorers: int, tensor_parallel: int) -> None:
    engines = f"rollout.tensor_parallel={tensor_parallel}", f"cluster.gpus_per_rollout={tensor_parallel}"
    bundles = colocated(
        *engines, f"rollout.workers={8 // tensor_parallel}", "learner.world_size=8", f"cluster.scorers={scorers}"
    )
    together = reserved_together(bundles)
    places = len(together) - 1  # the last one is that of the rewards
    nodes = ["x", "y", "x", "x", "y", "y", "y", "x"][:places]
    found, taken = node_by_node(bundles, [*nodes, "y"])
    of_learners = [nodes[taken[f"learner {rank}"]] for rank in range(8)]
    assert of_learners == sorted(of_learners) and {*of_learners} == {"x", "y"}
    assert [(b.name, b.cpus, b.gpus) for b in found] == [(b.name, b.cpus, b.gpus) for b in bundles]
    for at, indices in enumerate(together):  # each place holds as much as was reserved
        there = [bundle for bundle in found if taken[bundle.name] == at]
        reserved, held = joined([bundles[index] for index in indices]), joined(there)
        assert (held.cpus, held.gpus) == (reserved.cpus, reserved.gpus)
    for bundle in found:
        assert all(taken[f"learner {rank}"] == taken[bundle.name] for rank in bundle.learners)
        if bundle.role == "rollout":  # engine rank k takes its weights from learner rank k
            assert bundle.learners == tuple(range(bundle.rank * tensor_parallel, (bundle.rank + 1) * tensor_parallel))
    beside = [rank for bundle in found if bundle.role == "reference" for rank in bundle.learners]
    assert len(beside) == len({*beside}) == scorers
    assert devices(found) == 8
