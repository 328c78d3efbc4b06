"""Host memory of nodes, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ral_system.config.cluster import RayClusterConfig
from ral_system.config.commands import PlanCommandConfig
from ral_system.planning.devices import gpu
from ral_system.planning.host import (
    PROCESS,
    HostBytes,
    core_problems,
    fullest,
    fullest_node,
    host_problems,
    reserved_cores,
)
from ral_system.planning.memory import Role, page_locked
from tests.composed import compose_config
from tests.unit.planning.models import SMALL_STEP, VIDEO, planned

LEARNER = Role("learner", 4, 1, {}, {}, {"optimiser": 50}, {"published": 7}, 1024)
ENGINE = Role("rollout", 3, 2, {}, {}, {"media": 3})
REFERENCE = Role("reference", 1, 1, {}, {}, {}, away=64)


@pytest.mark.parametrize(
    ("node_gpus", "learners", "engines", "references"),
    [
        (16, 4, 3, 1),
        (8, 4, 2, 0),  # the last engine begins a node, and the reference is beside it
        (5, 4, 0, 1),  # engines do not fit into the one GPU that is left, a reference does
        (2, 2, 0, 0),  # and so on each node
    ],
)
def test_processes_fill_one_node_after_another(node_gpus: int, learners: int, engines: int, references: int) -> None:
    held = fullest_node([LEARNER, ENGINE, REFERENCE], node_gpus, shared=False)
    assert held["learner", "optimiser"] == 50 * learners and held["rollout", "media"] == 3 * engines
    processes = learners + engines + references
    assert held.total() == processes * PROCESS + 50 * learners + 3 * engines + 7  # weights that travel lie there once


def test_roles_that_share_gpus_have_host_memory_for_what_leaves_them() -> None:
    roles = [LEARNER, replace(ENGINE, processes=4, gpus=1), replace(REFERENCE, processes=4)]
    held = fullest_node(roles, 3, shared=True)
    assert held.total() == 9 * PROCESS + 3 * (50 + 1024 + 3 + 64) + 7  # three ranks with their engines and references


def test_an_engine_on_the_gpus_of_two_learners_lies_on_their_node() -> None:
    roles = [LEARNER, replace(ENGINE, processes=2, gpus=2), replace(REFERENCE, processes=4)]
    held = fullest_node(roles, 2, shared=True)
    assert held.total() == 5 * PROCESS + 2 * (50 + 1024 + 64) + 3 + 7  # two ranks, their engine and references


def cluster() -> RayClusterConfig:
    cores = ("learner=3", "rollout=2", "scorer=1.5", "reward=4")
    found = compose_config(*VIDEO, *(f"cluster.cpus_per_{role}" for role in cores)).cluster
    assert isinstance(found, RayClusterConfig)
    return found


def test_cores_are_reserved_where_the_processes_are() -> None:
    roles = [LEARNER, ENGINE, REFERENCE]
    nodes = reserved_cores(roles, cluster(), 8, shared=False)
    assert nodes == [{"learner": 12, "rollout": 4}, {"rollout": 2, "reference": 1.5, "verifiers": 4}]
    assert fullest(nodes) == nodes[0]
    (one,) = reserved_cores(roles, cluster(), 16, shared=False)
    assert one == {"learner": 12, "rollout": 6, "reference": 1.5, "verifiers": 4}


def test_cores_of_roles_that_share_gpus_add_up() -> None:
    roles = [LEARNER, replace(ENGINE, processes=2, gpus=2), replace(REFERENCE, processes=4)]
    first, second = reserved_cores(roles, cluster(), 2, shared=True)
    assert (
        {**first, "verifiers": 4}
        == second | {"verifiers": 4}
        == {
            "learner": 6,
            "rollout": 2,
            "reference": 3,
            "verifiers": 4,
        }
    )
    assert ("verifiers" in first) != ("verifiers" in second)


def test_a_node_with_too_few_cores_is_refused(one_layer: Path) -> None:
    few, config = planned(one_layer, *VIDEO, *SMALL_STEP, "plan.host_cores=19.5")
    (problem,) = few.problems
    assert problem == (
        "plan.host_cores=19.5: Ray reserves 20 CPU cores on a node with plan.node_gpus=8 (learner 8, rollout 6, "
        "reference 2, verifiers 4); lower cluster.cpus_per_*"
    )
    enough = config.plan.model_copy(update={"host_cores": 20.0})
    unknown = config.plan.model_copy(update={"host_cores": None})
    assert not [*core_problems(few.cores, enough)] and not [*core_problems(few.cores, unknown)]
    assert not [*core_problems([], config.plan)]  # without Ray nothing is reserved


def test_one_process_has_its_libraries_once() -> None:
    held = fullest_node([replace(role, processes=1, gpus=0) for role in (LEARNER, ENGINE)], 8, shared=False)
    assert held.total() == PROCESS + 50 + 3 + 7


def test_page_locked_memory_is_rounded_up_as_torch_does_it() -> None:
    assert [page_locked(size) for size in (0, 1, 2, 3, 4096, 4097)] == [0, 1, 2, 4, 4096, 8192]


def test_what_leaves_a_shared_gpu_is_counted_buffer_by_buffer(one_layer: Path) -> None:
    turns = ("cluster.placement=colocated", "learner.world_size=3", "rollout.workers=3", "cluster.scorers=3")
    plan, _ = planned(one_layer, *VIDEO, *SMALL_STEP, *turns, "algorithm.prompts_per_step=9")
    learner, engine, reference = plan.roles
    assert engine.away == 0 and reference.device["weights"] < reference.away < 2 * reference.device["weights"]
    moved = sum(learner.device[part] for part in ("weights", "gradients", "optimiser"))
    assert moved < learner.away < 2 * moved
    assert (
        plan.host["reference", "off its GPU"] == 3 * reference.away
        and plan.host["learner", "off its GPU"] == 3 * learner.away
    )


@pytest.mark.parametrize(
    ("part", "remedy"),
    [
        (
            ("learner", "optimiser"),
            "set learner.offload to what takes less, or raise learner.world_size beyond the GPUs",
        ),
        (("reference", "off its GPU"), "set cluster.placement=disaggregated"),
        (("object store", "published"), "lower algorithm.max_staleness, or set rollout.weight_transfer=null"),
        (("learner", "records"), "set algorithm.attention.record=top_k"),
        (("rollout", "media"), "lower rollout.workers"),
    ],
)
def test_what_takes_most_of_a_node_is_named_with_what_to_change(part: tuple[str, str], remedy: str) -> None:
    config = compose_config("plan.device=a100", "plan.node_gpus=4", kind=PlanCommandConfig)
    room = gpu(config.plan).node_bytes
    assert room == int(0.95 * 575 * 2**30)  # half of what a node with eight has
    host = HostBytes({part: room - 2**30, ("learner", "process"): 2**30})
    assert not list(host_problems(host, config.plan, gpu(config.plan)))
    (problem,) = host_problems(host + HostBytes({part: 2**30}), config.plan, gpu(config.plan))
    assert problem.startswith(
        "plan.host_gib=null: a node with plan.node_gpus=4 needs 547 GiB of host memory, of 546 that Ray lets it use, "
        f"546 of them for {part[0]} ({part[1]}); {remedy}"
    )


def test_a_run_whose_nodes_are_too_small_is_refused(one_layer: Path) -> None:
    plan, _ = planned(one_layer, *VIDEO, *SMALL_STEP, "learner.offload=optimizer", "plan.host_gib=34")
    states = plan.roles[0].host["gradients"] + plan.roles[0].host["optimiser"]
    assert plan.host.total() == 8 * PROCESS + 3 * 2**30 + 4 * (states + plan.roles[0].host["records"])
    (problem,) = plan.problems
    assert problem.startswith("plan.host_gib=34: a node with plan.node_gpus=8 needs 38.7 GiB of host memory, of 32.3 ")
