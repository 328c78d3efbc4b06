"""Assignment of ranks to the shards of a plan."""

from __future__ import annotations

import torch
from torch import Tensor

from ral_system.training.engine import Engine


class Shards:
    """The shards of `world_size` ranks, as `rank` sees them."""

    def __init__(self, engine: Engine, rank: int, world_size: int) -> None:
        sequence = engine.policy.sequence
        together = 1 if sequence is None else sequence.size
        self._engine = engine
        self.count, self.own = world_size // together, rank // together
        """How many there are, and the index of this rank's."""
        self.is_first = rank % together == 0
        """Whether what all ranks of the shard know is taken from this one."""

    def sum(self, values: Tensor) -> Tensor:
        """Add a small float64 tensor up over shards."""
        return self._engine.sum_over_ranks(values if self.is_first else torch.zeros_like(values))
