"""A cluster of several nodes, all on this machine."""

import time
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.cluster import nodes_may_join
from actors.placement import Bundle, release, reserve
from ral_system.errors import SetupError

pytestmark = pytest.mark.system


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
    release(reserve(bundles, 120.0, nodes_may_join=True, tell=hear))
    assert len(said) == 1
    missing = "the run needs 2 GPUs (learner 2 x 1), the cluster has 0 on 1 node(s)"
    assert said[0].startswith(f"waiting up to 120 s for the cluster: {missing}; joined: ")


def test_a_node_that_never_joins_is_missed_at_the_bound(cluster: Cluster) -> None:
    began = time.monotonic()
    with pytest.raises(SetupError, match=r"needs 99 GPUs \(learner 1 x 99\), the cluster has .* after 2 s; add nodes"):
        reserve([Bundle("learner", 0, 0.5, 99)], 2.0, nodes_may_join=True, tell=print)
    assert 2 <= time.monotonic() - began < 20
