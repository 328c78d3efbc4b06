"""Host memory and CPU cores of nodes with GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ral_system.config.cluster import RayClusterConfig
from ral_system.config.plan import PlanConfig
from ral_system.planning.devices import Device
from ral_system.planning.memory import Role, gib

PROCESS = 4 * 2**30
"""Host memory of a process for interpreter, libraries, CUDA context and decoded media: an assumption."""
STORE = "object store"

HostBytes = Counter[tuple[str, str]]
"""Bytes by role (or object store) and by purpose."""


def fullest_node(roles: Sequence[Role], node_gpus: int, *, shared: bool) -> HostBytes:
    """Return the host memory of the node whose processes use most. `shared`: processes of every role are on the GPUs of
    learner ranks, in the order of the ranks.
    """
    nodes = [_held(roles, processes, shared) for processes in _placed(roles, node_gpus, shared)]
    return max(nodes, key=HostBytes.total)


def _placed(roles: Sequence[Role], node_gpus: int, shared: bool) -> list[Counter[str]]:
    """Count the processes on each node. Each goes to the first node with enough free GPUs: Ray uses few nodes."""
    nodes: list[Counter[str]] = []
    free: list[float] = []
    for role in roles:
        taken = 0.0 if shared and role is not roles[0] else role.gpus
        for index in range(role.processes):
            fitting = (at for at, gpus in enumerate(free) if gpus >= taken - 1e-6)
            beside = min(index * max(1, int(role.gpus)) // node_gpus, len(nodes))
            at = beside if shared else next(fitting, len(nodes))
            if at == len(nodes):
                nodes.append(Counter())
                free.append(float(node_gpus))
            nodes[at][role.name] += 1
            free[at] -= taken
    return nodes


def reserved_cores(
    roles: Sequence[Role], cluster: RayClusterConfig, node_gpus: int, *, shared: bool
) -> list[dict[str, float]]:
    """Return the CPU cores that Ray reserves on each node, by role. Verifiers are on the one with fewest others."""
    each = {
        "learner": cluster.cpus_per_learner,
        "rollout": cluster.cpus_per_rollout,
        "reference": cluster.cpus_per_scorer,
        "teacher": cluster.cpus_per_teacher,
    }
    nodes = [{role: n * each[role] for role, n in node.items()} for node in _placed(roles, node_gpus, shared)]
    min(nodes, key=_sum)["verifiers"] = cluster.cpus_per_reward
    return nodes


def fullest(nodes: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the cores of the node on which most are reserved."""
    return max(nodes, key=_sum)


def _sum(cores: dict[str, float]) -> float:
    return sum(cores.values())


def core_problems(nodes: Sequence[dict[str, float]], plan: PlanConfig) -> Iterator[str]:
    """Report a node on which Ray would reserve more cores than it has: the run would wait for another, and fail."""
    if nodes and plan.host_cores is not None and (needed := _sum(most := fullest(nodes))) > plan.host_cores + 1e-6:
        by_role = ", ".join(f"{role} {cores:g}" for role, cores in most.items())
        yield (
            f"plan.host_cores={plan.host_cores:g}: Ray reserves {needed:g} CPU cores on a node with plan.node_gpus="
            f"{plan.node_gpus} ({by_role}); lower cluster.cpus_per_*"
        )


def _held(roles: Sequence[Role], processes: Counter[str], shared: bool) -> HostBytes:
    held = HostBytes()
    for role in roles:
        own = {"process": PROCESS} if role.gpus or role is roles[0] else {}  # without GPUs one process has all roles
        for part, size in (own | dict(role.host) | ({"off its GPU": role.away} if shared else {})).items():
            held[role.name, part] = processes[role.name] * size
        held += {(STORE, part): size for part, size in role.once.items()}
    return held


def host_problems(host: HostBytes, plan: PlanConfig, device: Device) -> Iterator[str]:
    """Report a node that needs more memory than it has, and the setting that lowers its largest part."""
    if host.total() > device.node_bytes:
        role, part = max(host, key=lambda at: host[at])
        given = "null" if plan.host_gib is None else f"{plan.host_gib:g}"
        yield (
            f"plan.host_gib={given}: a node with plan.node_gpus={plan.node_gpus} needs {gib(host.total())} GiB of host "
            f"memory, of {gib(device.node_bytes)} that Ray lets it use, {gib(host[role, part])} of them for {role} "
            f"({part}); {_REMEDIES[part]}"
        )


_OFFLOADED = "set learner.offload to what takes less, or raise learner.world_size beyond the GPUs of a node"
_VERSIONS = "lower algorithm.max_staleness, or set rollout.weight_transfer=null"
_REMEDIES = dict.fromkeys(("weights", "gradients", "optimiser"), _OFFLOADED) | {
    "off its GPU": "set cluster.placement=disaggregated",
    "published": _VERSIONS,
    "past weights": _VERSIONS,
    "records": "set algorithm.attention.record=top_k",
    "media": "lower rollout.workers",
    "process": "lower rollout.workers or learner.world_size, or set plan.host_gib to what your nodes have",
}
