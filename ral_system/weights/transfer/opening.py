"""The transfer that a run asks for."""

from __future__ import annotations

from typing import Any

from ral_system.config.algorithm import AlgorithmConfig
from ral_system.config.cluster import ClusterConfig
from ral_system.config.rollout import RolloutConfig
from ral_system.errors import ConfigError
from ral_system.registry import WEIGHT_TRANSFERS
from ral_system.weights.transfer.streamed import Streamed
from ral_system.weights.transfer.transfer import Transfer


def choose_transfer(
    name: str | None, max_staleness: int, *, one_process: bool, shares_memory: bool = False
) -> type[Transfer[Any]]:
    """Return the transfer of that name, or the one that suits the run.

    Raises ConfigError for an unknown name, and for a transfer that cannot serve this run.
    """
    if name is None:
        ahead = one_process or max_staleness > 0
        name = "object_store" if ahead else "shared_memory" if shares_memory else "broadcast"
    transfer: type[Transfer[Any]] = WEIGHT_TRANSFERS.get(name)
    if one_process and issubclass(transfer, Streamed):
        raise ConfigError(
            f"rollout.weight_transfer={name}: needs several processes, and cluster=local has one; set it to null, or "
            "choose cluster=ray"
        )
    if max_staleness and not transfer.keeps_offers:
        raise ConfigError(
            f"rollout.weight_transfer={name} sends weights when they are made and keeps none; set "
            f"algorithm.max_staleness=0 (now {max_staleness}), or choose another transfer"
        )
    return transfer


def configured_transfer(
    rollout: RolloutConfig, algorithm: AlgorithmConfig, cluster: ClusterConfig, *, one_node: bool = False
) -> type[Transfer[Any]]:
    """Return the transfer of a configured run, whose learners and engines may all be on one node.

    Raises ConfigError, as `choose_transfer` does.
    """
    on_gpus = cluster.gpus_per_learner or cluster.gpus_per_rollout
    return choose_transfer(
        rollout.weight_transfer,
        algorithm.max_staleness,
        one_process=cluster.kind == "local",
        shares_memory=cluster.placement == "colocated" or (one_node and not on_gpus),
    )
