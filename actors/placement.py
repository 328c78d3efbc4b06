"""What a run needs from the cluster, whether the cluster has it, and the placement group that holds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from ral_system.config.schema import RunConfig, Stage
from ral_system.errors import SetupError

_UNITS = (("CPU", "cpus"), ("GPU", "gpus"))


@dataclass(frozen=True, slots=True)
class Bundle:
    """The resources of one actor, which lie on one node.

    Example: `Bundle(role="learner", rank=1, cpus=0.5, gpus=1.0)`
    """

    role: str
    rank: int
    cpus: float
    gpus: float

    @property
    def name(self) -> str:
        """For example `learner 1`."""
        return f"{self.role} {self.rank}"

    def resources(self) -> dict[str, float]:
        """In Ray's terms; never empty, which Ray refuses."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        return {kind: amount for kind, amount in wanted.items() if amount > 0} or {"CPU": 0.001}


def plan(config: RunConfig, stage: Stage) -> list[Bundle]:
    """One bundle per actor of the stage, in the order the actors are started."""
    cluster, rollout = config.cluster, config.rollout
    if cluster.gpus_per_rollout and cluster.gpus_per_rollout < rollout.tensor_parallel:
        raise SetupError(
            f"rollout.tensor_parallel={rollout.tensor_parallel} needs that many GPUs per engine; "
            f"set cluster.gpus_per_rollout={rollout.tensor_parallel}"
        )
    bundles = [
        Bundle("learner", rank, cluster.cpus_per_learner, cluster.gpus_per_learner)
        for rank in range(config.learner.world_size)
    ]
    if stage == "perceive":  # judged by the learner itself
        return bundles
    bundles += [
        Bundle("rollout", rank, cluster.cpus_per_rollout, cluster.gpus_per_rollout) for rank in range(rollout.workers)
    ]
    if needs_reference(config, stage):
        bundles.append(Bundle("reference", 0, cluster.cpus_per_scorer, cluster.gpus_per_scorer))
    if stage == "rl":
        bundles += [
            Bundle("teacher", rank, cluster.cpus_per_teacher, cluster.gpus_per_teacher)
            for rank in range(len(config.teachers))
        ]
    bundles.append(Bundle("reward", 0, cluster.cpus_per_reward, 0.0))
    return bundles


def needs_reference(config: RunConfig, stage: Stage) -> bool:
    """Whether the stage has a frozen reference policy."""
    return stage == "rl" and config.needs_reference


def preflight(bundles: Sequence[Bundle], nodes: Sequence[Mapping[str, float]]) -> None:
    """Raise SetupError when the cluster could never hold the bundles, saying by how much. `nodes`: total resources."""
    for kind, unit in _UNITS:
        needed = sum(getattr(bundle, unit) for bundle in bundles)
        total = sum(node.get(kind, 0.0) for node in nodes)
        if needed > total + 1e-6:
            raise SetupError(
                f"the run needs {_amount(needed)} {kind}s ({_breakdown(bundles, unit)}), the cluster has "
                f"{_amount(total)} on {len(nodes)} node(s); add nodes, or lower cluster.{unit}_per_* or worker counts"
            )
    for bundle in bundles:
        if not any(all(node.get(k, 0.0) >= v for k, v in bundle.resources().items()) for node in nodes):
            wanted = ", ".join(f"{_amount(v)} {k}s" for k, v in bundle.resources().items())
            raise SetupError(f"{bundle.name} needs {wanted} on one node, and no node has them")


def reserve(bundles: Sequence[Bundle], timeout_s: float) -> PlacementGroup:
    """A placement group with one bundle per actor. Raises SetupError at once when it can never fit, or after
    `timeout_s` when others hold the resources.
    """
    preflight(bundles, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    group = placement_group([bundle.resources() for bundle in bundles], strategy="PACK")
    if not group.wait(timeout_seconds=timeout_s):
        free = ray.available_resources()
        remove_placement_group(group)
        needs = ", ".join(
            f"{_amount(sum(getattr(b, unit) for b in bundles))} {kind}s (free: {_amount(free.get(kind, 0.0))})"
            for kind, unit in _UNITS
            if any(getattr(b, unit) for b in bundles)
        )
        raise SetupError(
            f"no room on the cluster after {timeout_s:.0f} s: the run needs {needs}; another job holds the rest "
            "(`ray status` shows which), or raise cluster.start_timeout_s"
        )
    return group


def release(group: Any) -> None:
    """Give the resources back."""
    remove_placement_group(group)


def _breakdown(bundles: Sequence[Bundle], unit: str) -> str:
    counts = Counter((bundle.role, getattr(bundle, unit)) for bundle in bundles)
    return ", ".join(f"{role} {count} x {_amount(each)}" for (role, each), count in counts.items() if each)


def _amount(value: float) -> str:
    return f"{value:.4g}"
