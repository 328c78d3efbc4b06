"""The transfer that a run asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ral_system.config.run import RunConfig
from ral_system.errors import ConfigError
from ral_system.registry import WEIGHT_TRANSFERS
from ral_system.weights.transfer.transfer import Transfer


def open_transfer(config: RunConfig, run_folder: Path) -> Transfer[Any]:
    """The configured transfer. Raises ConfigError for an unknown one, and for one that cannot serve this run."""
    name, ahead = config.rollout.weight_transfer, config.algorithm.max_staleness
    transfer: Transfer[Any] = WEIGHT_TRANSFERS.get(name)(run_folder / "weights", ahead + 1)
    if ahead and not transfer.keeps_offers:
        raise ConfigError(
            f"rollout.weight_transfer={name} sends weights when they are made and keeps none; set "
            f"algorithm.max_staleness=0 (now {ahead}), or choose another transfer"
        )
    return transfer
