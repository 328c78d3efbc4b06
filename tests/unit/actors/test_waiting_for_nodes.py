"""Waiting for nodes that join late, up to `cluster.start_timeout_s`, on a pretended cluster with its own clock."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

from ral_system.actors import placement, roles
from ral_system.actors.cluster import nodes_may_join
from ral_system.actors.placement import Bundle, reserve
from ral_system.errors import SetupError
from tests.composed import compose_config

LEARNERS = [Bundle("learner", rank, 1, 1) for rank in range(2)]


class Cluster:
    """What `placement` uses of Ray, and its time. Nodes of one CPU and one GPU join at these seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *joins_at_s: float) -> None:
        self.now_s, self.asked, self.removed = 0.0, [], []
        self._joins_at_s = joins_at_s
        monkeypatch.setattr(placement, "ray", self)
        monkeypatch.setattr(placement, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr(placement, "placement_group", self._placement_group)
        monkeypatch.setattr(placement, "remove_placement_group", self.removed.append)

    def nodes(self) -> list[dict[str, Any]]:
        at = [s for s in self._joins_at_s if s <= self.now_s]
        found = [(f"10.0.0.{i}", {"CPU": 1.0, "GPU": 1.0}) for i in range(len(at))]
        return [{"Alive": True, "NodeManagerAddress": address, "Resources": r} for address, r in found]

    def _placement_group(self, bundles: list[dict[str, float]], strategy: str) -> Any:
        self.asked = bundles

        def wait(timeout_seconds: float) -> bool:
            if len(self.nodes()) >= len(bundles):
                return True
            self.now_s += timeout_seconds
            return False

        return SimpleNamespace(wait=wait)


def test_a_run_waits_for_nodes_that_join_late_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, said = Cluster(monkeypatch, 0.0, 50.0), []
    group = reserve(LEARNERS, 60.0, nodes_may_join=True, tell=lambda line: said.append((cluster.now_s, line)))
    assert cluster.now_s == 50 and group not in cluster.removed
    assert cluster.asked == [{"CPU": 1, "GPU": 1}] * 2  # an autoscaler adds nodes for what is asked
    missing = "the run needs 2 CPUs (learner 2 x 1) and 2 GPUs (learner 2 x 1), the cluster has 1 CPU and 1 GPU"
    line = f"waiting up to 60 s for the cluster: {missing} on 1 node(s); joined: 10.0.0.0"
    assert said == [(3.0, line), (33.0, line)]


def test_nodes_that_do_not_join_in_time_are_missed_then(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, 0.0, 61.0)
    missing = (
        r"needs 2 CPUs .* and 2 GPUs .*, the cluster has 1 CPU and 1 GPU on 1 node\(s\) \(10.0.0.0\) after 60 s; add"
    )
    with pytest.raises(SetupError, match=rf"{missing} nodes, .* or raise cluster.start_timeout_s"):
        reserve(LEARNERS, 60.0, nodes_may_join=True, tell=lambda line: None)
    assert cluster.now_s == 60 and len(cluster.removed) == 1  # nobody is left to get the room


def test_a_cluster_that_cannot_grow_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, 0.0, 50.0)
    with pytest.raises(SetupError, match="the cluster has 1 CPU and 1 GPU"):
        reserve(LEARNERS, 60.0, nodes_may_join=False, tell=lambda line: None)
    assert (cluster.now_s, cluster.asked) == (0, [])


@pytest.mark.parametrize("may_join", [True, False])
def test_roles_wait_as_the_run_says_where_nodes_may_join(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, may_join: bool
) -> None:
    def reserved(bundles: Any, timeout_s: float, *, nodes_may_join: bool, tell: Any) -> None:
        raise SetupError(f"{timeout_s} {nodes_may_join}")

    assert nodes_may_join()  # only a cluster of our own cannot grow
    monkeypatch.setattr(roles, "start_or_join", lambda address: None)
    monkeypatch.setattr(roles, "nodes_may_join", lambda: may_join)
    monkeypatch.setattr(roles, "reserve", reserved)
    config = compose_config("experiment=smoke", "cluster.start_timeout_s=77")
    with pytest.raises(SetupError, match=f"^77.0 {may_join}$"):
        roles.RayRoles(config, "rl", tmp_path, tmp_path)
