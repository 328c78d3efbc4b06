"""Known transfers, by the value of `rollout.weight_transfer`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ral_system.config.run import RunConfig
from ral_system.errors import ConfigError
from ral_system.registry import Registry

if TYPE_CHECKING:
    from ral_system.weights.transfer.transfer import Transfer

TRANSFERS: Registry[Callable[[Path, int], Transfer[Any]]] = Registry(
    "ral_system.weight_transfers",
    "weight transfer",
    {
        "object_store": "ral_system.weights.transfer.object_store:ObjectStore",
        "files": "ral_system.weights.transfer.files:Files",
    },
)
"""Each is called with a folder of the run, which learner and engines may share, and with how many offers may wait."""


def open_transfer(config: RunConfig, run_folder: Path) -> Transfer[Any]:
    """The configured transfer. Raises ConfigError for an unknown one, and for one that cannot serve this run."""
    name, ahead = config.rollout.weight_transfer, config.algorithm.max_staleness
    transfer = TRANSFERS.get(name)(run_folder / "weights", ahead + 1)
    if ahead and not transfer.keeps_offers:
        raise ConfigError(
            f"rollout.weight_transfer={name} sends weights when they are made and keeps none; set "
            f"algorithm.max_staleness=0 (now {ahead}), or choose another transfer"
        )
    return transfer
