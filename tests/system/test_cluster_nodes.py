"""A cluster of several nodes, all on this machine."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ral_system.actors.cluster import nodes_may_join
from ral_system.actors.nodes import nodes_of, stage_models
from ral_system.actors.placement import Bundle, joined, plan, release, reserve, reserved_together
from ral_system.errors import SetupError
from ral_system.models.staging import ModelCopy
from tests.composed import compose_config
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
    missing = "the run needs 2 GPUs (learner 2 x 1), the cluster has 0 on 1 node(s)"
    assert said[0].startswith(f"waiting up to 120 s for the cluster: {missing}; joined: ")


def test_processes_beside_a_learner_see_its_gpu(cluster: Cluster) -> None:
    """Ray hands out fractions of GPUs; the two here are those that joined in the test before."""
    overrides = (
        "cluster.placement=colocated",
        "rollout.workers=2",
        "learner.world_size=2",
        "cluster.cpus_per_scorer=0",
    )
    gpus = [f"cluster.{field}=1" for field in ("gpus_per_learner", "gpus_per_rollout", "gpus_per_scorer")]
    config = compose_config(*overrides, *gpus, "cluster.cpus_per_learner=0.1", "cluster.cpus_per_rollout=0.1")
    bundles = plan(config.cluster, config.rollout, config.learner, "rl", reference=True, teachers=0)
    together = reserved_together(bundles)
    group = reserve(
        [joined([bundles[i] for i in indices]) for indices in together], 60.0, nodes_may_join=True, tell=print
    )
    seen = {
        bundles[index].name: ray.remote(ray.get_gpu_ids).options(
            num_cpus=bundles[index].cpus,
            num_gpus=bundles[index].gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, at),
        )
        for at, indices in enumerate(together)
        for index in indices
    }
    found = {name: ray.get(task.remote()) for name, task in seen.items()}
    release(group)
    assert found["learner 0"] == found["rollout 0"] == found["reference 0"] != found["learner 1"]
    assert found["learner 1"] == found["rollout 1"] and found["reward 0"] == []
    assert sorted([*found["learner 0"], *found["learner 1"]]) == [0, 1]


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
    assert stage_models(nodes, models, run, 60.0, print) == [{chosen: chosen}, {chosen: own}, {chosen: own}]
    without = add_node(cluster, tmp_path / "empty")
    with pytest.raises(
        SetupError, match=rf"^node [\d.]+ cannot read model folder {chosen}, .* put HF_HOME on a volume"
    ):
        stage_models([here, without], [[], [chosen]], run, 60.0, print)
    assert list(run.iterdir()) == []  # the token is gone in either case


def add_node(cluster: Cluster, home: Path) -> str:
    before = {node["NodeID"] for node in ray.nodes()}
    cluster.add_node(num_cpus=1, env_vars={"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"})
    (added,) = {node["NodeID"] for node in ray.nodes()} - before
    return str(added)
