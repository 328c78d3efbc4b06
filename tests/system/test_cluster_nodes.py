"""A cluster of several nodes, all on this machine."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ral_system.actors.cluster import nodes_may_join
from ral_system.actors.group import Call, Member, wait_all
from ral_system.actors.nodes import nodes_of, stage_models
from ral_system.actors.placement import Bundle, release, reserve
from ral_system.actors.silent import where_they_hang
from ral_system.errors import ActorError, SetupError
from ral_system.models.staging import ModelCopy
from tests.composed import compose_config
from tests.system.pretended_run import start
from tests.system.troubled_actor import Troubled
from tests.unit.models.hub_cache import put_in_cache

pytestmark = [pytest.mark.system, pytest.mark.long]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_start_waits_for_the_node_that_joins_late(cluster: Cluster) -> None:
    assert nodes_may_join()
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        cluster.add_node(num_cpus=1, num_gpus=2)

    bundles = [Bundle("learner", rank, 0.5, 1) for rank in range(2)]
    group = reserve(bundles, 120.0, nodes_may_join=True, tell=hear)
    (newest,) = {node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU")}
    assert nodes_of(group) == [newest, newest]
    release(group)
    assert len(said) == 1
    missing = "the run needs 2 GPUs (learner 2 x 1), the cluster has 0 GPUs on 1 node(s)"
    assert said[0].startswith(f"waiting up to 120 s for the cluster: {missing}; joined: ")


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_processes_beside_learners_see_their_gpus(cluster: Cluster, tmp_path: Path, tensor_parallel: int) -> None:
    """On the node of the test before, and on one whose Ray hides all GPUs from processes that ask for none."""
    if sum(node["Resources"].get("GPU", 0) for node in ray.nodes()) < 4:
        cluster.add_node(num_cpus=1, num_gpus=2, env_vars={"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"})
    roles = {"learner": 1, "scorer": 1, "rollout": tensor_parallel, "reward": 0}
    resources = [f"cluster.cpus_per_{role}=0.01" for role in roles]
    resources += [f"cluster.gpus_per_{role}={gpus}" for role, gpus in roles.items() if gpus]
    config = compose_config(
        *("cluster.placement=colocated", "learner.world_size=4", "cluster.scorers=3"),
        *(f"rollout.workers={4 // tensor_parallel}", f"rollout.tensor_parallel={tensor_parallel}"),
        *resources,
    )
    started = start(config, put_in_cache(tmp_path), tmp_path / "run", "learner", "rollout", "reference")
    try:
        seen = {member.name: ray.get(member.handle.place.remote()) for member in started.members}
    finally:
        started.close()
    learners = [seen[f"learner {rank}"] for rank in range(4)]
    assert len(set(learners)) == 4 and all(len(place.gpus) == 1 for place in learners)
    assert len({place.node for place in learners}) == 2
    references = [seen[f"reference {i}"] for i in range(3)]
    assert len(set(references)) == 3 and {*references} < {*learners}
    assert learners[0].node == learners[1].node and learners[2].node == learners[3].node
    for i in range(4 // tensor_parallel):
        beside, engine = learners[i * tensor_parallel :][:tensor_parallel], seen[f"rollout {i}"]
        assert {place.node for place in beside} == {engine.node}
        assert engine.gpus == tuple(gpu for place in beside for gpu in place.gpus)  # its rank k is beside the k-th


def test_an_actor_that_hangs_on_another_node_is_asked_there(cluster: Cluster, tmp_path: Path) -> None:
    """A node that is gone is not waited for."""
    node, log = add_node(cluster, tmp_path), tmp_path / "troubled.log"
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    actor = ray.remote(Troubled).options(num_cpus=0, scheduling_strategy=there).remote("troubled 0", log)
    member = Member(actor, "troubled", 0, log, node)
    wait_all([Call(member, actor.pid.remote())], 60, "starting")
    with pytest.raises(
        ActorError,
        match=r"^troubled 0 did not answer within 2 s while testing; it is in hang \(",
    ):
        wait_all([Call(member, actor.hang.remote())], 2.0, "testing")
    assert "in hang" in log.read_text()
    ray.kill(actor)
    began = time.monotonic()
    (said,) = where_they_hang([("ab" * 28, log)])
    assert said.startswith("its node could not be asked what it is doing (") and time.monotonic() - began < 40


def test_a_node_that_never_joins_is_missed_at_the_bound(cluster: Cluster) -> None:
    began = time.monotonic()
    with pytest.raises(SetupError, match=r"needs 99 GPUs \(learner 1 x 99\), the cluster has .* after 2 s; add nodes"):
        reserve([Bundle("learner", 0, 0.5, 99)], 2.0, nodes_may_join=True, tell=print)
    assert 2 <= time.monotonic() - began < 20


def test_each_node_finds_the_model_in_its_own_cache(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's copy is renamed before the other nodes look, since they share this disk."""
    here = ray.get_runtime_context().get_node_id()
    chosen, own, run = put_in_cache(tmp_path / "driver"), put_in_cache(tmp_path / "node"), tmp_path / "run"
    copy = ModelCopy.of(chosen)
    monkeypatch.setattr(ModelCopy, "of", lambda folder: copy)
    shutil.move(tmp_path / "driver", tmp_path / "elsewhere")
    with_model = add_node(cluster, tmp_path / "node")
    nodes, models = [here, with_model, with_model], [[chosen], [chosen], []]
    assert stage_models(nodes, models, (), run, 60.0, print) == [{chosen: chosen}, {chosen: own}, {chosen: own}]
    without = add_node(cluster, tmp_path / "empty")
    with pytest.raises(
        SetupError, match=rf"^node [\d.]+ cannot read model folder {chosen}, .* put HF_HOME on a volume"
    ):
        stage_models([here, without], [[], [chosen]], (), run, 60.0, print)
    assert list(run.iterdir()) == []  # the token is gone in either case


def add_node(cluster: Cluster, home: Path) -> str:
    before = {node["NodeID"] for node in ray.nodes()}
    cluster.add_node(num_cpus=1, env_vars={"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"})
    (added,) = {node["NodeID"] for node in ray.nodes()} - before
    return str(added)
