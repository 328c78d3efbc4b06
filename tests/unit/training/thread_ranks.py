"""Ranks that are threads, for tests of what ranks tell each other."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import TypeVar, cast

import torch
from torch import Tensor

from ral_system.training.shards import Shards

Found = TypeVar("Found")


@dataclass
class Rank:
    """A rank that is a thread: its sums are over those of all that come to the barrier."""

    own: int
    told: list[Tensor]
    barrier: Barrier

    def sum(self, values: Tensor) -> Tensor:
        """Sum in place, like torch.distributed."""
        self.told[self.own] = values.clone()
        self.barrier.wait(timeout=30)
        values.copy_(sum(self.told, torch.zeros_like(values)))
        self.barrier.wait(timeout=30)
        return values


def together(count: int, of_rank: Callable[[int, Shards], Found]) -> list[Found]:
    """Call `of_rank` in `count` ranks at the same time; return what each finds."""
    told, barrier = [torch.zeros(0)] * count, Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda rank: of_rank(rank, cast(Shards, Rank(rank, told, barrier))), range(count)))
