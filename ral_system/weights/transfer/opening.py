"""The transfer that a run asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ral_system.errors import ConfigError
from ral_system.registry import WEIGHT_TRANSFERS
from ral_system.weights.transfer.transfer import Transfer


def open_transfer(name: str, max_staleness: int, run_folder: Path) -> Transfer[Any]:
    """The transfer of that name. Raises ConfigError for an unknown one, and for one that cannot serve this run."""
    transfer: Transfer[Any] = WEIGHT_TRANSFERS.get(name)(run_folder / "weights", max_staleness + 1)
    if max_staleness and not transfer.keeps_offers:
        raise ConfigError(
            f"rollout.weight_transfer={name} sends weights when they are made and keeps none; set "
            f"algorithm.max_staleness=0 (now {max_staleness}), or choose another transfer"
        )
    return transfer
