"""What a run needs from the cluster, whether the cluster has it, and the placement group that holds it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from ral_system.config.choices import Stage
from ral_system.config.cluster import RayClusterConfig
from ral_system.config.learner import LearnerConfig
from ral_system.config.rollout import RolloutConfig
from ral_system.errors import SetupError

_UNITS = (("CPU", "cpus"), ("GPU", "gpus"))
_POLL_S = 1.0
_FIRST_WORD_S = 3.0
_REPEAT_S = 30.0
_LESS = "lower cluster.cpus_per_*, cluster.gpus_per_* or worker counts"


@dataclass(frozen=True, slots=True)
class Bundle:
    """The resources of one actor, or of several that share GPUs, which lie on one node.

    Example: `Bundle(role="learner", rank=1, cpus=0.5, gpus=1.0)`
    """

    role: str
    rank: int
    cpus: float
    gpus: float
    """GPUs that the bundle uses."""
    learners: tuple[int, ...] = ()
    """Learner ranks with the same node and GPUs, with `cluster.placement=colocated`."""

    @property
    def name(self) -> str:
        """Role and rank, for example `learner 1`."""
        return f"{self.role} {self.rank}"

    @property
    def own_gpus(self) -> float:
        """GPUs to request from Ray: none for a bundle that uses the GPUs of learners."""
        return 0.0 if self.learners else self.gpus

    def resources(self) -> dict[str, float]:
        """Resources in Ray's terms; never empty, because Ray refuses that."""
        wanted = {"CPU": self.cpus, "GPU": self.own_gpus}
        return {kind: amount for kind, amount in wanted.items() if amount > 0} or {"CPU": 0.001}


def plan(
    cluster: RayClusterConfig,
    rollout: RolloutConfig,
    learner: LearnerConfig,
    stage: Stage,
    *,
    reference: bool,
    teachers: int,
) -> list[Bundle]:
    """Return one bundle per actor of the stage, learners first, in the order in which the actors start.

    `reserved_together` tells which of them share GPUs. `reference` and `teachers` say which frozen models the rl stage
    has.
    """
    bundles = [
        Bundle("learner", rank, cluster.cpus_per_learner, cluster.gpus_per_learner)
        for rank in range(learner.world_size)
    ]
    if stage == "perceive":  # judged by the learner itself
        return bundles
    bundles += [
        Bundle("rollout", rank, cluster.cpus_per_rollout, cluster.gpus_per_rollout) for rank in range(rollout.workers)
    ]
    if stage == "rl":
        bundles += [
            Bundle("reference", rank, cluster.cpus_per_scorer, cluster.gpus_per_scorer)
            for rank in range(cluster.scorers if reference else 0)
        ]
        bundles += [
            Bundle("teacher", rank, cluster.cpus_per_teacher, cluster.gpus_per_teacher) for rank in range(teachers)
        ]
    if cluster.placement == "colocated":
        ranks = rollout.tensor_parallel if rollout.engine == "vllm" else 1
        bundles = [_beside_learners(bundle, learner.world_size, ranks) for bundle in bundles]
    bundles.append(Bundle("reward", 0, cluster.cpus_per_reward, 0.0))
    return bundles


def _beside_learners(bundle: Bundle, world_size: int, engine_ranks: int) -> Bundle:
    """Put an engine on the GPUs of `engine_ranks` learner ranks, reference i and teacher i on that of rank i."""
    if bundle.role == "learner":
        return bundle
    count = engine_ranks if bundle.role == "rollout" else 1
    first = bundle.rank * count % world_size
    return replace(bundle, learners=tuple(range(first, first + count)))


def reserved_together(bundles: Sequence[Bundle]) -> list[list[int]]:
    """Group the indices of bundles that share GPUs. An engine of several GPUs joins its learners into one group."""
    first: dict[int, int] = {}
    for bundle in bundles:
        first |= {rank: min(first.get(rank, rank), bundle.learners[0]) for rank in bundle.learners}
    found: dict[tuple[str, int], list[int]] = {}
    for index, bundle in enumerate(bundles):
        learner = bundle.rank if bundle.role == "learner" else min(bundle.learners, default=None)
        place = (bundle.role, bundle.rank) if learner is None else ("learner", first.get(learner, learner))
        found.setdefault(place, []).append(index)
    return list(found.values())


def joined(bundles: Sequence[Bundle]) -> Bundle:
    """Return one bundle with the resources of all of these; GPUs that they share count once."""
    if len(bundles) == 1:
        return bundles[0]
    roles = " + ".join(b.role for b in bundles)
    return Bundle(roles, bundles[0].rank, sum(b.cpus for b in bundles), sum(b.own_gpus for b in bundles))


def devices(bundles: Sequence[Bundle]) -> float:
    """Count the GPUs of the bundles, shared ones once. Without GPUs, count the processes that have a model."""
    gpus = sum(joined([bundles[index] for index in indices]).gpus for indices in reserved_together(bundles))
    return gpus or float(sum(bundle.role != "reward" for bundle in bundles))


def node_by_node(bundles: Sequence[Bundle], nodes: Sequence[str]) -> tuple[list[Bundle], dict[str, int]]:
    """Assign reserved places to the bundles, so the ranks of a role fill one node after another.

    `nodes` are those of the places, in the order of `reserved_together`. Returns the bundles, and the place of each by
    name. Ray places bundles in an order of its own, and rings in the order of the ranks would then cross between nodes
    more often than there are nodes. Learners that share GPUs with others change places together with their engine.
    Frozen models keep the places that have room for them, beside the learners that come there.
    """
    together = reserved_together(bundles)
    movers = [[index for index in place if not _keeps_place(bundles[index])] for place in together]
    first = {node: at for at, node in reversed(list(enumerate(nodes)))}
    alike: dict[tuple[str, float, float], list[int]] = {}
    for at, moving in enumerate(movers):
        whole = joined([bundles[index] for index in moving])
        alike.setdefault((whole.role, whole.cpus, whole.gpus), []).append(at)
    taken: dict[int, int] = {}
    for places in alike.values():
        taken |= dict(zip(places, sorted(places, key=lambda at: first[nodes[at]]), strict=True))
    assigned: dict[str, int] = {}
    found = list(bundles)
    for at, place in taken.items():
        assigned |= {bundles[index].name: place for index in movers[at]}
        beside = dict(zip(_learners(bundles, together[place]), _learners(bundles, together[at]), strict=True))
        for index in set(together[place]) - set(movers[place]):
            found[index] = replace(bundles[index], learners=tuple(beside[rank] for rank in bundles[index].learners))
            assigned[bundles[index].name] = place
    return found, assigned


def _keeps_place(bundle: Bundle) -> bool:
    return bool(bundle.learners) and bundle.role != "rollout"


def _learners(bundles: Sequence[Bundle], place: Sequence[int]) -> list[int]:
    return sorted(bundles[index].rank for index in place if bundles[index].role == "learner")


def preflight(bundles: Sequence[Bundle], nodes: Sequence[Mapping[str, float]]) -> None:
    """Raise SetupError if the bundles cannot fit on a cluster that cannot grow. `nodes`: total resources of each."""
    if lack := shortage(bundles, nodes):
        raise SetupError(f"{lack}; {_LESS}")


def shortage(bundles: Sequence[Bundle], nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Describe all that the nodes lack to hold the bundles, and how much of it; None if nothing."""
    needs, there, short = [], [], set()
    for kind, unit in _UNITS:
        needed = sum(getattr(bundle, unit) for bundle in bundles)
        total = sum(node.get(kind, 0.0) for node in nodes)
        if needed > total + 1e-6:
            needs.append(f"{_amount(needed, kind)} ({_breakdown(bundles, unit)})")
            there.append(_amount(total, kind))
            short.add(kind)
    found = []
    if short:
        found.append(
            f"the run needs {' and '.join(needs)}, the cluster has {' and '.join(there)} on {len(nodes)} node(s)"
        )
    too_large: dict[tuple[str, str], str] = {}  # by role and size, the first of its bundles
    for bundle in bundles:
        wanted = {kind: amount for kind, amount in bundle.resources().items() if kind not in short}
        if not any(all(node.get(kind, 0.0) >= amount for kind, amount in wanted.items()) for node in nodes):
            size = ", ".join(_amount(amount, kind) for kind, amount in bundle.resources().items())
            too_large.setdefault((bundle.role, size), bundle.name)
    found += [f"{name} needs {size} on one node, and no node has them" for (_, size), name in too_large.items()]
    return "; ".join(found) or None


def reserve(
    bundles: Sequence[Bundle], timeout_s: float, *, nodes_may_join: bool, tell: Callable[[str], None]
) -> PlacementGroup:
    """Reserve a placement group with one bundle per actor, once the cluster has room for it.

    Until then `tell` gets what is missing, every 30 s. Raises SetupError after `timeout_s`, or at once when the
    cluster is too small and no node can join.
    """
    if not nodes_may_join:
        preflight(bundles, [node["Resources"] for node in _nodes()])
    # Asked for before the nodes are there: an autoscaler adds nodes for what is asked.
    group = placement_group([bundle.resources() for bundle in bundles], strategy="PACK")
    began = time.monotonic()
    tell_at = _FIRST_WORD_S
    while not group.wait(timeout_seconds=_POLL_S):  # in short waits: Ctrl-C does not reach a long one
        waited = time.monotonic() - began
        if waited >= timeout_s:
            error = _no_room(bundles, timeout_s)
            remove_placement_group(group)
            raise error
        if waited >= tell_at:
            tell(f"waiting up to {timeout_s:.0f} s for the cluster: {_missing(bundles)}; joined: {_addresses()}")
            tell_at = waited + _REPEAT_S
    return group


def _no_room(bundles: Sequence[Bundle], timeout_s: float) -> SetupError:
    if lack := shortage(bundles, [node["Resources"] for node in _nodes()]):
        found = f"{lack} ({_addresses()}) after {timeout_s:.0f} s"
        return SetupError(f"{found}; add nodes, {_LESS}, or raise cluster.start_timeout_s")
    return SetupError(
        f"no room on the cluster after {timeout_s:.0f} s: {_missing(bundles)}; `ray status` shows who holds the rest; "
        "wait for it, or raise cluster.start_timeout_s"
    )


def _missing(bundles: Sequence[Bundle]) -> str:
    if lack := shortage(bundles, [node["Resources"] for node in _nodes()]):
        return lack
    free = ray.available_resources()
    needs = (
        f"{_amount(sum(getattr(b, unit) for b in bundles), kind)} (free: {free.get(kind, 0.0):.4g})"
        for kind, unit in _UNITS
        if any(getattr(b, unit) for b in bundles)
    )
    return f"the run needs {', '.join(needs)}"


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _addresses() -> str:
    return ", ".join(node["NodeManagerAddress"] for node in _nodes())


def release(group: Any) -> None:
    """Give the resources back."""
    remove_placement_group(group)


def _breakdown(bundles: Sequence[Bundle], unit: str) -> str:
    counts = Counter((bundle.role, getattr(bundle, unit)) for bundle in bundles)
    return ", ".join(f"{role} {count} x {each:.4g}" for (role, each), count in counts.items() if each)


def _amount(value: float, kind: str) -> str:
    return f"{value:.4g} {kind}{'' if value == 1 else 's'}"
